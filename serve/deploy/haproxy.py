"""The launcher that stands where Ray looks for HAProxy: hardens the generated file, then becomes HAProxy.

Ray's template (2.60) binds statistics and metrics to all interfaces, leaves the admin socket open to everybody,
sets no time limit for request heads and answers its own errors in plain text. It offers no place for own lines,
but it lets us name the binary. Every line that we replace must be found, or we refuse to start: then Ray's
template has changed and this file must be read again. Standard library only, because it starts on each reload.
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
# Headers by which a client could switch Ray's cancellation and time limits, or choose a replica.
_CONTROL_HEADERS = ("x-request-disconnect-disabled", "x-request-timeout-seconds", "serve_multiplexed_model_id",
                    "x-session-id")  # fmt: skip


class TemplateChanged(RuntimeError):
    """A line that must be hardened is not in the generated file."""


def harden(config: str, environment: Mapping[str, str], folder: Path) -> str:
    """The generated configuration with our lines in place of the open ones. `folder` holds the error files."""
    host, port = environment[HOST], environment[PORT]
    bracketed = f"[{host}]" if ":" in host else host
    frontend = [f"    bind {bracketed}:{port}", *_limits(environment), *_dropped_headers(), *_private_routes()]
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
        "bad-request.http": raw("400 Bad Request", "this is not a valid HTTP request", "invalid_request_error",
                                "bad_http", False),
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


def _dropped_headers() -> list[str]:
    return [
        *(f"    http-request del-header {name}" for name in _CONTROL_HEADERS),
        # Ray echoes any X-Request-Id, and so does our app: one checked id in, one out.
        "    http-request del-header x-request-id if !{ req.hdr(x-request-id) -m reg ^[!-~]{1,128}$ }",
        "    http-response set-header x-request-id %[res.hdr(x-request-id,1)] if { res.hdr(x-request-id) -m found }",
    ]


def _private_routes() -> list[str]:
    # Ray's own /-/routes names the application; nobody outside needs it.
    return ["    http-request return status 404 content-type application/json "
            f"string {json.dumps(_error('there is no such route', 'invalid_request_error', 'not_found').decode())} "
            "if { path_beg /-/ } !{ src 127.0.0.0/8 }"]  # fmt: skip


if __name__ == "__main__":
    main(sys.argv[1:], os.environ)
