"""The launcher that stands where Ray looks for HAProxy: hardens the generated file, then becomes HAProxy.

Ray's template (2.60) binds statistics and metrics to all interfaces, leaves the admin socket open to everybody,
sets no time limit for request heads and answers its own errors in plain text. It offers no place for own lines,
but it lets us name the binary. Every line that we replace must be found, or we refuse to start: then Ray's
template has changed and this file must be read again. Standard library only, because it starts on each reload.

What HAProxy 2.8 refuses while it still parses a request's head cannot be taught: those words are compiled into it
(`http_err_msgs` in its `mux_h1.c`; issue 3032 changed that in 3.2). docs/http.md lists them.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NoReturn

# Names of the environment variables by which `local` tells us what to do.
BINARY, HOST, PORT = "STARSERVE_HAPROXY_BINARY", "STARSERVE_EDGE_HOST", "STARSERVE_EDGE_PORT"
HEADER_TIMEOUT_S, PER_ADDRESS = "STARSERVE_EDGE_HEADER_TIMEOUT_S", "STARSERVE_EDGE_PER_ADDRESS"
ORIGINS = "STARSERVE_EDGE_CORS_ORIGINS"  # with spaces between; without it, none
BUFFER_BYTES = 1 << 15  # Ray gives it to HAProxy; a head that does not fit is refused in HAProxy's own words
MOST_HEAD_BYTES = 15 << 10  # so heads are refused in ours from here on
METHODS = "GET, HEAD, POST, OPTIONS"
# Headers by which a client could switch Ray's cancellation and time limits, or choose a replica.
_CONTROL_HEADERS = ("x-request-disconnect-disabled", "x-request-timeout-seconds", "serve_multiplexed_model_id",
                    "x-session-id")  # fmt: skip


class TemplateChanged(RuntimeError):
    """A line that must be hardened is not in the generated file."""


def harden(config: str, environment: Mapping[str, str], folder: Path) -> str:
    """The generated configuration with our lines in place of the open ones. `folder` holds the error files."""
    host, port = environment[HOST], environment[PORT]
    bracketed = f"[{host}]" if ":" in host else host
    frontend = [
        f"    bind {bracketed}:{port}",
        *_limits(environment),
        *_request_ids(),
        *_cors(environment.get(ORIGINS, "").split()),
        *_dropped_headers(),
        *_refusals(),
    ]
    rules: list[tuple[str, str]] = [
        (r"^( *stats socket \S+) mode 666 level admin", r"\1 mode 600 level admin"),
        (r"^frontend prometheus\n *bind :(\d+)", r"frontend prometheus\n    bind 127.0.0.1:\1"),
        (rf"^(frontend http_frontend\n) *bind \S+:{port}", r"\1" + "\n".join(frontend)),
        (r"^(listen stats\n *bind )\*:(\d+)", r"\g<1>127.0.0.1:\2"),
        (r"^( *)errorfile 502 \S+", rf"\1errorfile 502 {folder}/lost.http"),
        (r"^( *)errorfile 503 \S+", rf"\1errorfile 503 {folder}/unavailable.http"),
        (r"^( *)errorfile 504 \S+", rf"\1errorfile 504 {folder}/lost.http"),
        # HAProxy 2.8 with this option does not see a client leave while its answer is awaited, now and then.
        (r"^ *option splice-request\n", ""),
        (r"^(defaults\n)", rf"\1    timeout http-request {environment[HEADER_TIMEOUT_S]}s\n"
                           rf"    errorfile 400 {folder}/bad-request.http\n    errorfile 408 {folder}/too-slow.http\n"),
        (r"^(backend default_backend\n)[^\n]*", rf"\1    http-request return status 503 content-type application/json "
                                                rf"file {folder}/unavailable.json hdr Retry-After 5"),
    ]  # fmt: skip
    for pattern, replacement in rules:
        config, found = re.subn(pattern, replacement, config, count=1, flags=re.MULTILINE)
        if not found:
            raise TemplateChanged(f"HAProxy's generated file has no line {pattern!r}: Ray's template has changed")
    for line in re.findall(r"^ *bind .*$", config, flags=re.MULTILINE):
        if not re.match(rf" *bind (127\.0\.0\.1:\d+|{re.escape(bracketed)}:{port})\s*$", line):
            raise TemplateChanged(f"HAProxy's generated file binds more than we know: {line.strip()}")
    return config


def error_files() -> dict[str, bytes]:
    """HAProxy's own answers in OpenAI's shape, by file name."""

    def raw(head: str, message: str, kind: str, code: str, retry: bool) -> bytes:
        body = _error(message, kind, code)
        return (f"HTTP/1.1 {head}\r\nContent-Type: application/json\r\nCache-Control: no-cache\r\n"
                f"Connection: close\r\n{'Retry-After: 5' + chr(13) + chr(10) if retry else ''}"
                f"Content-Length: {len(body)}\r\n\r\n").encode() + body  # fmt: skip

    unavailable = ("no router is ready; try again soon", "server_error", "router_unavailable")
    return {
        # HAProxy has one answer for both: in its words a client abort, and a body that breaks its own framing.
        "bad-request.http": raw("400 Bad Request", "the connection was closed from your side before the answer came, "
                                "or the body is not valid HTTP; keep it open", "invalid_request_error", "bad_http",
                                False),
        "too-slow.http": raw("408 Request Timeout", "the request head came too slowly", "invalid_request_error",
                             "request_timeout", False),
        "unavailable.http": raw("503 Service Unavailable", *unavailable, True),
        "lost.http": raw("503 Service Unavailable", "the router stopped while it answered", "server_error",
                         "router_lost", True),
        "unavailable.json": _error(*unavailable),
    }  # fmt: skip


def main(arguments: Sequence[str], environment: Mapping[str, str]) -> NoReturn:
    binary = environment[BINARY]
    if "-f" in arguments:
        path = Path(arguments[arguments.index("-f") + 1])
        for name, content in error_files().items():
            (path.parent / name).write_bytes(content)
        beside = path.with_suffix(".hardened")
        beside.write_text(harden(path.read_text(), environment, path.parent))
        # In place: Ray knows its processes by this path.
        os.replace(beside, path)
        checked = subprocess.run([binary, "-c", "-f", str(path)], capture_output=True, text=True)
        if checked.returncode:
            sys.exit(f"HAProxy refuses the hardened file: {checked.stderr.strip()}")
    os.execv(binary, [binary, *arguments])


def _error(message: str, kind: str, code: str) -> bytes:
    return json.dumps({"error": {"message": message, "type": kind, "param": None, "code": code}}).encode()


def _limits(environment: Mapping[str, str]) -> list[str]:
    return [
        "    stick-table type ipv6 size 100k expire 10m store conn_cur",
        "    tcp-request connection track-sc0 src",
        f"    tcp-request connection reject if {{ sc0_conn_cur gt {environment[PER_ADDRESS]} }}",
    ]


def _request_ids() -> list[str]:
    """One id from here on: the client's, if it is printable and short, or a new one. Our own answers carry it too."""
    return [
        "    http-request del-header x-request-id if !{ req.hdr(x-request-id) -m reg ^[!-~]{1,128}$ }",
        "    http-request set-header x-request-id req-%[uuid] if !{ req.hdr(x-request-id) -m found }",
        "    http-request set-var(txn.request_id) req.fhdr(x-request-id)",
        # Ray echoes it, and so does our app: one goes out.
        "    http-response set-header x-request-id %[res.hdr(x-request-id,1)] if { res.hdr(x-request-id) -m found }",
        "    http-after-response set-header x-request-id %[var(txn.request_id)] "
        "if { var(txn.request_id) -m found } !{ res.hdr(x-request-id) -m found }",
    ]


def _cors(origins: Sequence[str]) -> list[str]:
    """Let the pages that the router allows read what HAProxy itself answers."""
    if not origins:
        return []
    # A line each: HAProxy bounds the words of one.
    allowed = [f"req.fhdr(origin) if {{ req.fhdr(origin) -m str {origin} }}" for origin in origins]
    if "*" in origins:
        allowed = ["str(*) if { req.fhdr(origin) -m found }"]
    ours = "if { var(txn.origin) -m found } !{ res.hdr(access-control-allow-origin) -m found }"
    return [
        *(f"    http-request set-var(txn.origin) {one}" for one in allowed),
        f"    http-after-response set-header access-control-expose-headers x-request-id,retry-after {ours}",
        f"    http-after-response add-header vary Origin {ours}",
        f"    http-after-response set-header access-control-allow-origin %[var(txn.origin)] {ours}",
    ]


def _dropped_headers() -> list[str]:
    return [
        *(f"    http-request del-header {name}" for name in _CONTROL_HEADERS),
        # An offer to speak another protocol. None is spoken here, and a server may ignore it (RFC 9110, 7.8). HAProxy
        # has read Connection before, and writes its own.
        "    http-request del-header upgrade",
        "    http-request del-header connection",
    ]


def _refusals() -> list[str]:
    invalid = "invalid_request_error"
    return [
        # Ray's own /-/routes names the application, which is private. Routers read paths decoded; so does this rule.
        _returned(
            404, "there is no such route", invalid, "not_found", "{ path,url_dec -m beg /-/ } !{ src 127.0.0.0/8 }"
        ),
        # No backend takes what is no path (`OPTIONS *`), and that must not look as if no router were there.
        _returned(404, "there is no such route", invalid, "not_found", "!METH_CONNECT !{ path -m beg / }"),
        _returned(
            405, "this server is no proxy", invalid, "method_not_allowed", "METH_CONNECT", f'hdr Allow "{METHODS}"'
        ),
        _returned(
            431,
            f"the headers are larger than {MOST_HEAD_BYTES} bytes",
            invalid,
            "headers_too_large",
            f"{{ req.hdrs,length gt {MOST_HEAD_BYTES} }}",
        ),
    ]


def _returned(status: int, message: str, kind: str, code: str, condition: str, headers: str = "") -> str:
    body = json.dumps(_error(message, kind, code).decode())
    return (
        f"    http-request return status {status} content-type application/json string {body} {headers} if {condition}"
    )


if __name__ == "__main__":
    main(sys.argv[1:], os.environ)
