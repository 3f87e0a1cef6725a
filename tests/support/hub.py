"""A stand-in of the hub: the requests that huggingface_hub 2.4 makes for a model, answered over real HTTP.

Large files (LFS) are redirected to a second server, as the hub does with its storage. It counts the bytes that it
sends, remembers what was asked, and can fail in the ways in which networks and hubs fail.
"""

from __future__ import annotations

import hashlib
import json
import socket
import struct
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit

REPOSITORY, COMMIT = "owner/tiny-starcoder", "0123456789abcdef0123456789abcdef01234567"
LARGE = (".safetensors", ".bin")


class Asked(NamedTuple):
    server: str  # hub or storage
    method: str
    path: str
    token: str | None


class Hub:
    """One repository with one commit. Change the fields while it runs; `close` ends it."""

    def __init__(self, files: dict[str, bytes]) -> None:
        self.files = files
        self.described: dict[str, dict[str, Any]] = {}  # what the listing says otherwise than the truth
        self.token: str | None = None  # without it, a gated repository
        self.refuse: tuple[int, str] | None = None  # status and X-Error-Code of every answer
        self.cut: dict[str, list[int]] = {}  # bytes of a file that the next answers send before the line breaks
        self.reset = False  # the line breaks with a TCP reset instead of an early end
        self.stall_after: int | None = None  # bytes of a large file after which nothing comes anymore
        self.closing = threading.Event()
        self.down = False  # every connection ends without an answer
        self.asked: list[Asked] = []
        self.sent: Counter[str] = Counter()
        self._servers = [_serve(self, "hub"), _serve(self, "storage")]

    @property
    def address(self) -> str:
        return self._address(0)

    @property
    def storage(self) -> str:
        return self._address(1)

    def fetched(self) -> set[str]:
        """Names of the files that were asked for."""
        return {unquote(a.path.split(f"/resolve/{COMMIT}/")[1]) for a in self.asked if "/resolve/" in a.path}

    def listing(self) -> dict[str, Any]:
        siblings = []
        for name, content in self.files.items():
            entry: dict[str, Any] = {"rfilename": name, "size": len(content), "blobId": git_sha1(content)}
            if name.endswith(LARGE):
                sha256 = hashlib.sha256(content).hexdigest()
                entry |= {"lfs": {"size": len(content), "sha256": sha256, "pointerSize": 134}, "blobId": "0" * 40}
            siblings.append(entry | self.described.get(name, {}))
        return {"id": REPOSITORY, "modelId": REPOSITORY, "sha": COMMIT, "private": False, "siblings": siblings}

    def close(self) -> None:
        self.closing.set()
        for server in self._servers:
            server.shutdown()
            server.server_close()

    def _address(self, which: int) -> str:
        return f"http://127.0.0.1:{self._servers[which].server_address[1]}"


def git_sha1(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _serve(hub: Hub, name: str) -> ThreadingHTTPServer:
    handler = type("Handler", (_Handler,), {"hub": hub, "name": name})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    return server


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub
    name: str

    def do_GET(self) -> None:
        hub, token = self.hub, self.headers.get("Authorization")
        path = urlsplit(self.path).path
        hub.asked.append(Asked(self.name, self.command, path, token))
        if hub.down:
            self.close_connection = True
        elif hub.refuse is not None:
            self._answer(hub.refuse[0], {"X-Error-Code": hub.refuse[1]} if hub.refuse[1] else {})
        elif self.name == "storage":
            self._send(path.removeprefix("/"))
        elif path.startswith("/api/models/"):
            self._api(path)
        elif path.startswith(prefix := f"/{REPOSITORY}/resolve/{COMMIT}/"):
            self._resolve(unquote(path.removeprefix(prefix)), token)
        else:
            self._answer(404, {"X-Error-Code": "RepoNotFound"})

    do_HEAD = do_GET

    def log_message(self, format: str, *args: Any) -> None:
        return None

    def _api(self, path: str) -> None:
        wanted = path.removeprefix("/api/models/")
        if not wanted.startswith(f"{REPOSITORY}/"):
            self._answer(404, {"X-Error-Code": "RepoNotFound"})
        elif wanted != f"{REPOSITORY}/revision/{COMMIT}":
            self._answer(404, {"X-Error-Code": "RevisionNotFound"})
        else:
            self._answer(200, {"Content-Type": "application/json"}, json.dumps(self.hub.listing()).encode())

    def _resolve(self, name: str, token: str | None) -> None:
        if self.hub.token is not None and token != f"Bearer {self.hub.token}":
            return self._answer(403 if token else 401, {"X-Error-Code": "GatedRepo"})
        if name not in self.hub.files:
            return self._answer(404, {"X-Error-Code": "EntryNotFound"})
        content, about = self.hub.files[name], {"X-Repo-Commit": COMMIT}
        if not name.endswith(LARGE):
            return self._send(name, {**about, "ETag": f'"{git_sha1(content)}"'})
        sha256 = hashlib.sha256(content).hexdigest()
        self._answer(302, {
            **about, "Location": f"{self.hub.storage}/{name}", "X-Linked-Size": str(len(content)),
            "X-Linked-Etag": f'"{sha256}"', "X-Xet-Hash": sha256,
            "Link": f'<{self.hub.address}/api/models/{REPOSITORY}/xet-read-token/{COMMIT}>; rel="xet-auth"',
        })  # fmt: skip

    def _send(self, name: str, headers: dict[str, str] | None = None) -> None:
        """A file, or the rest of it where the client names a range."""
        content, begin = self.hub.files[name], 0
        if wanted := self.headers.get("Range"):
            begin = int(wanted.removeprefix("bytes=").split("-")[0])
        span = {"Content-Range": f"bytes {begin}-{len(content) - 1}/{len(content)}"} if wanted else {}
        self._head(206 if wanted else 200, {**(headers or {}), **span, "Content-Length": str(len(content) - begin)})
        if self.command == "HEAD":
            return
        cuts = self.hub.cut.get(name, [])
        end = begin + cuts.pop(0) if cuts else len(content)
        for place in range(begin, end, 1 << 18):
            piece = content[place : min(place + (1 << 18), end)]
            if self.hub.stall_after is not None and place >= self.hub.stall_after and name.endswith(LARGE):
                self.hub.closing.wait(60)
                break
            try:
                self.wfile.write(piece)
            except OSError:  # the client was killed
                return
            self.hub.sent[name] += len(piece)
        if end < len(content) or self.hub.stall_after is not None:
            self.close_connection = True
            if self.hub.reset:
                time.sleep(1)  # what was sent arrives first; a reset throws away what was not read
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                self.connection.close()

    def _answer(self, status: int, headers: dict[str, str], body: bytes = b"") -> None:
        self._head(status, {**headers, "Content-Length": str(len(body))})
        if self.command != "HEAD":
            self.wfile.write(body)

    def _head(self, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
