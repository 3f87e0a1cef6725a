"""A web page in real Chromium calls the server from another origin, through the real HAProxy."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from html import unescape
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from serve.deploy import haproxy
from tests.support.door import SETTINGS, Door
from tests.support.edge import edge
from tests.support.http_bytes import checked, serving_beside
from tests.support.stack import free_port

pytestmark = pytest.mark.full
PAGE = """<!doctype html><pre id=told></pre><script>
const told = {}, asked = ASKED;
async function main() {
  for (const [name, path, options] of asked) {
    try {
      const answer = await fetch("ADDRESS" + path, options);
      told[name] = {status: answer.status, id: answer.headers.get("x-request-id"), text: await answer.text()};
    } catch (e) { told[name] = {blocked: e.name}; }
  }
  document.getElementById("told").textContent = JSON.stringify(told);
}
main();
</script>"""


@contextmanager
def page_at(port: int, address: str, asked: list[Any]) -> Iterator[str]:
    """A page of an origin of its own that asks each of these and writes down what it may read of the answers."""
    whole = PAGE.replace("ADDRESS", address).replace("ASKED", json.dumps(asked)).encode()

    class Pages(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            self.wfile.write(whole)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", port), Pages)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{port}/"
    finally:
        server.shutdown()
        server.server_close()


def read_in_chromium(address: str, profile: Path) -> dict[str, Any]:
    """What the page wrote."""
    browser = shutil.which("chromium")
    assert browser, "chromium is not installed; this test opens a page in it (Debian: apt install chromium)"
    command = [
        browser,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        f"--user-data-dir={profile}",
        "--virtual-time-budget=20000",
        "--dump-dom",
        address,
    ]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    found = re.search(r'<pre id="told">(.*?)</pre>', shown, flags=re.DOTALL)
    assert found, shown
    told: dict[str, Any] = json.loads(unescape(found[1]))
    return told


def test_pages_of_named_origins_may_call_and_read_and_no_others(words_folder: Path, tmp_path: Path) -> None:
    allowed, other = free_port(), free_port()
    origin = f"http://127.0.0.1:{allowed}"
    door = Door(words_folder, {**SETTINGS, "http": {"cors_origins": [origin]}})
    body = {"model": "tiny", "prompt": "def f(", "max_tokens": 4}
    with_key = {"Authorization": f"Bearer {door.key}", "Content-Type": "application/json"}

    def post(key: dict[str, str] = with_key, **changes: Any) -> list[Any]:
        return ["/v1/completions", {"method": "POST", "headers": key, "body": json.dumps({**body, **changes})}]

    asked = [
        ["models", "/v1/models", {"headers": with_key}],
        ["whole", *post()],
        ["stream", *post(stream=True)],
        ["refused", *post(temperature=-1)],
        ["nobody", *post({"Authorization": "Bearer nobody", "Content-Type": "application/json"})],
        ["nowhere", "/-/routes/x", {}],
    ]
    with serving_beside(checked(door.app)) as behind, edge(tmp_path, behind, **{haproxy.ORIGINS: origin}) as port:
        told = []
        for page in (allowed, other):
            with page_at(page, f"http://127.0.0.1:{port}", asked) as address:
                told.append(read_in_chromium(address, tmp_path / str(page)))
    named, stranger = told
    statuses = {name: answer.get("status") for name, answer in named.items()}
    assert statuses["models"] == statuses["whole"] == statuses["stream"] == 200, named
    assert (statuses["refused"], statuses["nobody"]) == (400, 401)
    assert statuses["nowhere"] == 404  # HAProxy's own answer, or the router's
    assert all(answer["id"] for answer in named.values())
    assert json.loads(named["whole"]["text"])["usage"]["completion_tokens"] == 4
    assert named["stream"]["text"].rstrip().endswith("data: [DONE]")
    assert json.loads(named["refused"]["text"])["error"]["param"] == "temperature"
    assert set(map(str, stranger.values())) == {"{'blocked': 'TypeError'}"}
