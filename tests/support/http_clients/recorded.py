"""The requests of real HTTP clients: captures, and what was written after sources."""

from __future__ import annotations

from pathlib import Path

from tests.support.http_clients.from_source import REQUESTS

CAPTURES = {path.stem: path.read_bytes() for path in sorted(Path(__file__).parent.glob("*.http"))}
CLIENTS = {**CAPTURES, **REQUESTS}


def sent_by(client: str, key: str) -> bytes:
    assert b"Bearer KEY" in CLIENTS[client]
    return CLIENTS[client].replace(b"Bearer KEY", f"Bearer {key}".encode())
