import java.net.http.HttpResponse;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayDeque;
import java.util.ArrayList;
import java.util.Deque;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.Objects;
import java.util.regex.MatchResult;
import java.util.regex.Pattern;
import java.util.stream.Collectors;

/**
 * Runs the conformance vectors and writes TAP: {@code javac -d out *.java}, then
 * {@code java -cp out Conformance ../conformance.json}.
 */
public final class Conformance {
    /** Enough of JSON where it is known to be well-formed: commas and colons say nothing that brackets don't. */
    private static final Pattern TOKEN = Pattern.compile("\"(?:[^\"\\\\]|\\\\.)*\"|[-+.\\w]+|[\\[\\]{}]");

    private Conformance() {}

    public static void main(String[] arguments) throws Exception {
        Map<?, ?> file = (Map<?, ?>) parse(Files.readString(Path.of(arguments[0])));
        int count = 0;
        int failures = 0;
        for (Object element : (List<?>) file.get("vectors")) {
            Map<?, ?> vector = (Map<?, ?>) element;
            Map<?, ?> tolerance = (Map<?, ?>) vector.get("tolerance");
            HttpResponse<String> response = CrossEntropy.post(write(vector.get("request")));
            String why = response.statusCode() == (Double) vector.get("status")
                    ? difference(vector.get("response"), parse(response.body()), tolerance, "#")
                    : "status " + response.statusCode();
            failures += why == null ? 0 : 1;
            System.out.println((why == null ? "ok " : "not ok ") + ++count + " - " + vector.get("name")
                    + (why == null ? "" : " # " + why));
        }
        System.out.println("1.." + count);
        System.exit(failures == 0 ? 0 : 1);
    }

    /** The first difference, by the rules of ../README.md, or null. */
    static String difference(Object expected, Object found, Map<?, ?> tolerance, String place) {
        if (expected instanceof Map<?, ?> fields && found instanceof Map<?, ?> others) {
            return fields.keySet().stream()
                    .map(name -> difference(fields.get(name), others.get(name), tolerance, place + "/" + name))
                    .filter(Objects::nonNull).findFirst().orElse(null);
        }
        if (expected instanceof List<?> items && found instanceof List<?> others && items.size() == others.size()) {
            for (int index = 0; index < items.size(); index++) {
                String inside = difference(items.get(index), others.get(index), tolerance, place + "/" + index);
                if (inside != null) return inside;
            }
            return null;
        }
        if (expected instanceof Double number && found instanceof Double other && tolerance != null) {
            double allowed = (Double) tolerance.get("absolute") + (Double) tolerance.get("relative") * Math.abs(number);
            return Math.abs(other - number) <= allowed ? null : place + " is " + found + ", not " + expected;
        }
        return Objects.equals(expected, found) ? null : place + " is " + found + ", not " + expected;
    }

    /** JSON as maps, lists, strings, doubles, booleans and null; strings without escapes. */
    static Object parse(String json) {
        return value(new ArrayDeque<>(TOKEN.matcher(json).results().map(MatchResult::group).toList()));
    }

    private static Object value(Deque<String> tokens) {
        String token = tokens.remove();
        if (token.equals("{")) {
            Map<String, Object> fields = new HashMap<>();
            while (!tokens.peek().equals("}")) fields.put((String) value(tokens), value(tokens));
            tokens.remove();
            return fields;
        }
        if (token.equals("[")) {
            List<Object> items = new ArrayList<>();
            while (!tokens.peek().equals("]")) items.add(value(tokens));
            tokens.remove();
            return items;
        }
        if (token.startsWith("\"")) return token.substring(1, token.length() - 1);
        if (token.equals("true") || token.equals("false")) return Boolean.valueOf(token);
        return token.equals("null") ? null : Double.valueOf(token);
    }

    static String write(Object value) {
        if (value instanceof Map<?, ?> fields) {
            return fields.entrySet().stream()
                    .map(field -> write(field.getKey()) + ":" + write(field.getValue()))
                    .collect(Collectors.joining(",", "{", "}"));
        }
        if (value instanceof List<?> items) {
            return items.stream().map(Conformance::write).collect(Collectors.joining(",", "[", "]"));
        }
        if (value instanceof String text) return "\"" + text + "\"";
        boolean isInteger = value instanceof Double number && number % 1 == 0 && Math.abs(number) < 1e15;
        return isInteger ? String.valueOf(((Double) value).longValue()) : String.valueOf(value); // labels: 1, not 1.0
    }
}
