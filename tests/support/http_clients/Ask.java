// JDK's HttpClient as it comes, which prefers HTTP/2 and so offers h2c on plain http. Run as `java Ask.java URL`.
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse;

public class Ask {
    public static void main(String[] words) throws Exception {
        String body = "{\"model\": \"tiny\", \"prompt\": \"def f(\", \"max_tokens\": 4}";
        HttpRequest request = HttpRequest.newBuilder(URI.create(words[0] + "/v1/completions"))
            .header("Authorization", "Bearer KEY")
            .header("Content-Type", "application/json")
            .POST(HttpRequest.BodyPublishers.ofString(body))
            .build();
        HttpClient.newHttpClient().send(request, HttpResponse.BodyHandlers.ofString());
    }
}
