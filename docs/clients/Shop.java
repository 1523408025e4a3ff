// Post an order, follow it by its stream and cancel it, with Java's HttpClient (Java 17: `java Shop.java`).
// The texts are taken from the JSON by a pattern to need no library; use your JSON library instead.

import java.io.IOException;
import java.io.UncheckedIOException;
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpRequest.BodyPublishers;
import java.net.http.HttpResponse;
import java.net.http.HttpResponse.BodyHandlers;
import java.util.Iterator;
import java.util.UUID;
import java.util.regex.Matcher;
import java.util.regex.Pattern;

class Shop {
    static final String API = System.getenv().getOrDefault("API", "http://127.0.0.1:8000");
    static final String USER = System.getenv().getOrDefault("SHOP_USER", "customer");
    static final String PASSWORD = System.getenv().getOrDefault("SHOP_PASSWORD", "demo-customer");
    static final HttpClient client = HttpClient.newHttpClient();
    static String token = "";

    static HttpRequest.Builder request(String path) {
        HttpRequest.Builder request = HttpRequest.newBuilder(URI.create(API + path));
        return token.isEmpty() ? request : request.header("Authorization", "Bearer " + token);
    }

    static String send(HttpRequest.Builder request) throws IOException, InterruptedException {
        HttpResponse<String> answer = client.send(request.build(), BodyHandlers.ofString());
        if (answer.statusCode() >= 400) throw new IOException(answer.statusCode() + " " + answer.body());
        return answer.body();
    }

    static String post(String path, String body) throws IOException, InterruptedException {
        return send(request(path)
            .header("Content-Type", "application/json")
            .header("Idempotency-Key", UUID.randomUUID().toString())
            .POST(BodyPublishers.ofString(body)));
    }

    static String text(String json, String name) {
        Matcher found = Pattern.compile("\"" + name + "\": ?\"([^\"]*)\"").matcher(json);
        return found.find() ? found.group(1) : null;
    }

    /** Prints each step after step `last`, until the order is at rest. Returns the id of the last step. */
    static String follow(String path, String last) throws IOException, InterruptedException {
        while (true) {
            HttpRequest.Builder request = request(path + "/events").header("Last-Event-ID", last);
            HttpResponse<java.util.stream.Stream<String>> answer = client.send(request.build(), BodyHandlers.ofLines());
            if (answer.statusCode() == 204) return last;
            if (answer.statusCode() >= 400) throw new IOException("" + answer.statusCode());
            try (java.util.stream.Stream<String> lines = answer.body()) {
                String event = "";
                for (Iterator<String> each = lines.iterator(); each.hasNext(); ) {
                    String line = each.next();
                    if (line.startsWith("id: ")) last = line.substring(4);
                    if (line.startsWith("event: ")) event = line.substring(7);
                    if (!line.startsWith("data: ")) continue;
                    if (event.equals("end")) return last;
                    System.out.println("  step " + event + " -> " + text(line, "to"));
                }
            } catch (UncheckedIOException cut) {
                System.out.println("  the stream was cut: " + cut.getMessage());
            }
            Thread.sleep(1000); // then continue after the last step
        }
    }

    public static void main(String[] arguments) throws Exception {
        String login = "{\"username\": \"" + USER + "\", \"password\": \"" + PASSWORD + "\"}";
        token = text(post("/api/auth/token", login), "access_token");

        String order = post("/api/orders", """
            {"currency": "EUR", "payment_method": "mock_ok",
             "items": [{"sku": "lamp", "quantity": 1, "unit_price": 1999}]}""");
        String path = "/api/orders/" + text(order, "order_id");
        System.out.println("posted " + text(order, "order_id") + " " + text(order, "status"));

        String last = follow(path, "0");
        System.out.println("settled " + text(send(request(path)), "status"));

        System.out.println("cancel " + text(post(path + "/cancel", ""), "status"));

        follow(path, last);
        System.out.println("ended " + text(send(request(path)), "status"));
    }
}
