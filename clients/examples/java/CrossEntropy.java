import java.io.IOException;
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse;
import java.net.http.HttpResponse.BodyHandlers;
import java.time.Duration;
import java.util.Arrays;
import java.util.regex.Matcher;
import java.util.regex.Pattern;

/** Cross-entropy over HTTP: {@code java CrossEntropy.java} (Java 17 or later, no libraries). */
public final class CrossEntropy {
    private static final String BASE_URL =
            System.getenv().getOrDefault("LOSSEVAL_URL", "http://127.0.0.1:8000");
    private static final Duration TIMEOUT = Duration.ofSeconds(10);
    private static final HttpClient HTTP = HttpClient.newBuilder()
            .version(HttpClient.Version.HTTP_1_1)
            .connectTimeout(TIMEOUT)
            .build();

    private CrossEntropy() {}

    public static void main(String[] arguments) throws InterruptedException {
        double[][] logits = {
            {0.3703, -0.1607, -0.7473, -2.2135},
            {0.6929, -0.2042, -0.7660, -0.3613},
            {-0.3363, 0.6417, 0.3103, 0.3132},
        };
        int[] labels = {0, 1, 2};
        try {
            HttpResponse<String> response = post(request(logits, labels));
            if (response.statusCode() == 200) {
                System.out.println(number("loss", response.body()));
                return;
            }
            System.err.println(problem(response));
        } catch (IOException error) {
            System.err.println("No answer from " + BASE_URL + ": " + error);
        }
        System.exit(1);
    }

    /** Finite numbers only: NaN and infinities are the strings "NaN", "Infinity" and "-Infinity" in JSON. */
    static String request(double[][] logits, int[] labels) {
        return "{\"logits\": %s, \"labels\": %s}".formatted(Arrays.deepToString(logits), Arrays.toString(labels));
    }

    static HttpResponse<String> post(String json) throws IOException, InterruptedException {
        HttpRequest request = HttpRequest.newBuilder(URI.create(BASE_URL + "/v1/cross-entropy"))
                .timeout(TIMEOUT)
                .header("Content-Type", "application/json")
                .header("X-Request-Timeout", String.valueOf(TIMEOUT.toSeconds()))
                .POST(HttpRequest.BodyPublishers.ofString(json))
                .build();
        return HTTP.send(request, BodyHandlers.ofString());
    }

    /** Title and detail of a problem document (RFC 9457); a proxy may answer with something else. */
    static String problem(HttpResponse<String> response) {
        String type = response.headers().firstValue("Content-Type").orElse("");
        return type.startsWith("application/problem+json")
                ? text("title", response.body()) + ": " + text("detail", response.body())
                : "HTTP " + response.statusCode() + " from " + BASE_URL;
    }

    static String text(String field, String json) {
        Matcher found = Pattern.compile("\"%s\":\"((?:[^\"\\\\]|\\\\.)*)\"".formatted(field)).matcher(json);
        return found.find() ? found.group(1) : "";
    }

    static double number(String field, String json) {
        Matcher found = Pattern.compile("\"%s\":\"?([^\",}]+)".formatted(field)).matcher(json);
        return found.find() ? Double.parseDouble(found.group(1)) : Double.NaN;
    }
}
