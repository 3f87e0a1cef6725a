"""An environment of its own for each client, made on first use and kept: what a client wants never meets what we want.

They lie in `.venv-clients/`, named after the hash of the pinned requirements; `requirements/compile` pins them.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parent.parent.parent
KEPT = ROOT / ".venv-clients"
TORCH_INDEX = "https://download.pytorch.org/whl/cpu/torch/"


def python_of(client: str) -> Path:
    """The interpreter of a client's environment: the packages of `CLIENT.txt`, by their hashes."""
    pinned = HERE / f"{client}.txt"
    folder = _folder(client, pinned)
    python = folder / "bin" / "python"
    if not (folder / "done").exists():
        shutil.rmtree(folder, ignore_errors=True)
        print(f"\nstarserve: making the environment of {client} in {folder.relative_to(ROOT)}", flush=True)
        uv = str(ROOT / ".venv" / "bin" / "uv")
        links = os.environ.get("UV_FIND_LINKS") or os.environ.get("PIP_FIND_LINKS") or TORCH_INDEX
        environment = {**os.environ, "UV_FIND_LINKS": links}
        # Without our own pyproject.toml, which leaves out packages that a client may want.
        _run([uv, "venv", "-q", "--no-config", "--python", sys.executable, str(folder)], environment, ROOT)
        install = [
            uv,
            "pip",
            "install",
            "-q",
            "--no-config",
            "--python",
            str(python),
            "--require-hashes",
            "-r",
            str(pinned),
        ]
        _run(install, environment, ROOT)
        (folder / "done").touch()
    return python


def node_of(client: str) -> Path:
    """A folder with the `node_modules` of `CLIENT/package-lock.json`. Scripts run with it as cwd."""
    source = HERE / client
    folder = _folder(client, source / "package-lock.json")
    if not (folder / "done").exists():
        if shutil.which("npm") is None:
            raise AssertionError("npm is not installed; this test runs a client of Node (Debian: apt install npm)")
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        print(f"\nstarserve: making the environment of {client} in {folder.relative_to(ROOT)}", flush=True)
        for name in ("package.json", "package-lock.json"):
            shutil.copyfile(source / name, folder / name)
        _run(["npm", "ci", "--no-audit", "--no-fund", "--silent"], dict(os.environ), folder)
        (folder / "done").touch()
    return folder


def _folder(client: str, pinned: Path) -> Path:
    return KEPT / f"{client}-{hashlib.sha256(pinned.read_bytes()).hexdigest()[:8]}"


def _run(command: list[str], environment: dict[str, str], folder: Path) -> None:
    done = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
