"""A server with known times, in a process of its own: the whole router over the deterministic engine.

`with KnownServer(words_folder, ttft_s=0.2, tpot_s=0.02) as server` listens on `server.address`, opened by `server.key`.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Any

from tests.support.stack import free_port, wait_for


class KnownServer:
    def __init__(self, words_folder: Path, **engine: Any) -> None:
        self._words, self._engine, self._port = words_folder, engine, free_port()
        self.address = f"http://127.0.0.1:{self._port}"

    def __enter__(self) -> KnownServer:
        self._folder = tempfile.TemporaryDirectory()
        arguments = json.dumps([str(self._words), self._folder.name, self._port, self._engine])
        self._process = subprocess.Popen([sys.executable, "-m", "tests.support.known_server", arguments])
        wait_for(lambda: (Path(self._folder.name) / "ready").exists() or self._process.poll() is not None, within_s=60)
        assert self._process.poll() is None
        self.key = (Path(self._folder.name) / "key").read_text()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.terminate()
        self._process.wait(10)
        self._folder.cleanup()


def serve(words: Path, folder: Path, port: int, engine: dict[str, Any]) -> None:
    import socket

    import uvicorn

    from serve.app import build
    from serve.engines.assembly import assemble
    from serve.engines.fake import FakeEngine
    from serve.settings import parse
    from tests.support.door import MANY, SETTINGS, known_tenants

    settings, (tenants, key) = parse(SETTINGS), known_tenants()
    queue = settings.models[0].engine.queue
    known = assemble(FakeEngine(**engine), queue, MANY, lambda tokens: None).receipts
    (folder / "key").write_text(key)
    app = build(settings, {"tiny": words}, {"tiny": known}, tenants, observe=lambda _: None).app
    with socket.socket() as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(("127.0.0.1", port))
        listening.listen(1024)
        (folder / "ready").touch()
        uvicorn.Server(uvicorn.Config(app, log_level="error")).run([listening])


if __name__ == "__main__":
    given = json.loads(sys.argv[1])
    serve(Path(given[0]), Path(given[1]), given[2], given[3])
