import java.io.IOException;
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse;
import java.net.http.HttpResponse.BodyHandlers;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.time.Duration;
import java.util.Arrays;
import java.util.regex.Matcher;
import java.util.regex.Pattern;

import static java.nio.charset.StandardCharsets.UTF_8;

/**
 * Cross-entropy over HTTP in binary, for arrays of any size: {@code java Binary.java} (Java 17 or later, no libraries).
 *
 * <p>A safetensors file is the length of its header (8 bytes, little-endian), the header as JSON, and the elements.
 */
public final class Binary {
    private static final String BASE_URL = System.getenv().getOrDefault("LOSSEVAL_URL", "http://127.0.0.1:8000");
    private static final Duration TIMEOUT = Duration.ofSeconds(10);

    private Binary() {}

    public static void main(String[] arguments) throws InterruptedException {
        float[] logits = {
            0.3703f, -0.1607f, -0.7473f, -2.2135f,
            0.6929f, -0.2042f, -0.7660f, -0.3613f,
            -0.3363f, 0.6417f, 0.3103f, 0.3132f,
        };
        try {
            HttpResponse<byte[]> response = post(encode(logits, new long[] {0, 1, 2}), "include=loss,gradients");
            if (response.statusCode() == 200) {
                System.out.println(tensor("loss", response.body()).getDouble());
                float[] gradients = new float[logits.length];
                tensor("gradients", response.body()).asFloatBuffer().get(gradients);
                System.out.println(Arrays.toString(gradients));
                return;
            }
            System.err.println(new String(response.body(), UTF_8)); // title and detail of a problem document (RFC 9457)
        } catch (IOException error) {
            System.err.println("No answer from " + BASE_URL + ": " + error);
        }
        System.exit(1);
    }

    static HttpResponse<byte[]> post(byte[] file, String options) throws IOException, InterruptedException {
        HttpClient http = HttpClient.newBuilder().version(HttpClient.Version.HTTP_1_1).connectTimeout(TIMEOUT).build();
        HttpRequest request = HttpRequest.newBuilder(URI.create(BASE_URL + "/v1/cross-entropy?" + options))
                .timeout(TIMEOUT)
                .header("Content-Type", "application/x-safetensors")
                .header("X-Request-Timeout", String.valueOf(TIMEOUT.toSeconds()))
                .POST(HttpRequest.BodyPublishers.ofByteArray(file))
                .build();
        return http.send(request, BodyHandlers.ofByteArray());
    }

    /** A file of logits (N, C) in float32 and labels (N) in int64. */
    static byte[] encode(float[] logits, long[] labels) {
        int split = Float.BYTES * logits.length;
        int end = split + Long.BYTES * labels.length;
        byte[] header = """
                {"logits": {"dtype": "F32", "shape": [%1$s, %2$s], "data_offsets": [0, %3$s]},
                 "labels": {"dtype": "I64", "shape": [%1$s], "data_offsets": [%3$s, %4$s]}}"""
                .formatted(labels.length, logits.length / labels.length, split, end)
                .getBytes(UTF_8);
        ByteBuffer file = ByteBuffer.allocate(Long.BYTES + header.length + end).order(ByteOrder.LITTLE_ENDIAN);
        file.putLong(header.length).put(header);
        for (float logit : logits) file.putFloat(logit);
        for (long label : labels) file.putLong(label);
        return file.array();
    }

    /** The elements of one tensor of a file. */
    static ByteBuffer tensor(String name, byte[] file) {
        int start = Long.BYTES + (int) ByteBuffer.wrap(file).order(ByteOrder.LITTLE_ENDIAN).getLong();
        String header = new String(file, Long.BYTES, start - Long.BYTES, UTF_8);
        String pattern = "\"%s\":\\{[^}]*\"data_offsets\":\\[(\\d+),(\\d+)\\]".formatted(name);
        Matcher place = Pattern.compile(pattern).matcher(header);
        if (!place.find()) throw new IllegalArgumentException("no tensor " + name);
        int from = start + Integer.parseInt(place.group(1));
        int to = start + Integer.parseInt(place.group(2));
        return ByteBuffer.wrap(file, from, to - from).slice().order(ByteOrder.LITTLE_ENDIAN);
    }
}
