"""What clients send that do not run here, written after their sources: each line's place in the order has its reason.

The requests of those that do run here (curl, Node, JDK) are captures, in the files beside this one.
"""

from __future__ import annotations

BODY = b'{"model": "tiny", "prompt": "def f(", "max_tokens": 4}'


def _request(start: str, headers: list[str], body: bytes = b"") -> bytes:
    return "\r\n".join([start, *headers, "", ""]).encode() + body


# Apache HttpClient 5.4, classic, of `HttpClients.createDefault()`. apache/httpcomponents-client, tag rel/v5.4:
# ContentCompressionExec.execute adds Accept-Encoding before the chain of interceptors, which HttpClientBuilder.build
# puts in the order RequestTargetHost, RequestContent, RequestClientConnControl, RequestUserAgent, RequestUpgrade. The
# last adds the offer to OPTIONS, HEAD and GET. A caller that sets `Upgrade` for a POST sends the same lines there.
_APACHE = [
    "Authorization: Bearer KEY", "Accept-Encoding: gzip, x-gzip, deflate", "Host: 127.0.0.1:18080",
]  # fmt: skip
_APACHE_END = ["Connection: keep-alive", "User-Agent: Apache-HttpClient/5.4 (Java/17.0.15)"]
_OFFER = ["Upgrade: TLS/1.2", "Connection: Upgrade"]
_APACHE_BODY = [f"Content-Length: {len(BODY)}", "Content-Type: application/json; charset=UTF-8"]

# .NET 8 to 10, HttpClient over SocketsHttpHandler. dotnet/runtime, SocketsHttpHandler/HttpConnection.cs, WriteHeaders:
# Host, then the request's headers in the order in which they were set, then the content's. JsonContent has no known
# length, so that Transfer-Encoding is among the request's headers; StringContent knows its own.
_DOTNET = ["Host: 127.0.0.1:18080", "Authorization: Bearer KEY"]
_JSON = "Content-Type: application/json; charset=utf-8"

# Go, net/http. golang/go, src/net/http/request.go, Request.write: Host, User-Agent, the transfer writer's
# Content-Length, the request's headers sorted by name (Header.writeSubset), last the transport's Accept-Encoding.
_GO = [
    "Host: 127.0.0.1:18080", "User-Agent: Go-http-client/1.1", f"Content-Length: {len(BODY)}",
    "Authorization: Bearer KEY", "Content-Type: application/json", "Accept-Encoding: gzip",
]  # fmt: skip

POST = "POST /v1/completions HTTP/1.1"
REQUESTS: dict[str, bytes] = {
    "apache-5.4-get": _request("GET /v1/models HTTP/1.1", [*_APACHE, *_APACHE_END, *_OFFER]),
    "apache-5.4-post": _request(POST, [*_APACHE, *_APACHE_BODY, *_APACHE_END], BODY),
    "apache-5.4-post-upgrade": _request(POST, [*_APACHE, *_APACHE_BODY, *_APACHE_END, *_OFFER], BODY),
    "dotnet-string": _request(POST, [*_DOTNET, _JSON, f"Content-Length: {len(BODY)}"], BODY),
    "dotnet-json": _request(
        POST, [*_DOTNET, "Transfer-Encoding: chunked", _JSON], b"%X\r\n%b\r\n0\r\n\r\n" % (len(BODY), BODY)
    ),
    "go": _request(POST, _GO, BODY),
}
