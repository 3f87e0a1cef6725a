"""What real HTTP clients send, byte by byte, is answered: captures, and requests written after the clients' sources."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.door import Door
from tests.support.http_bytes import first_answer, serving_beside
from tests.support.http_clients.recorded import CAPTURES, CLIENTS, sent_by


@pytest.fixture(scope="module")
def served(words_folder: Path) -> Iterator[tuple[int, str]]:
    """A router's port and a key."""
    door = Door(words_folder)
    with serving_beside(door.app) as port:
        yield port, door.key


@pytest.mark.parametrize("client", CLIENTS)
async def test_what_a_client_sends_is_answered(served: tuple[int, str], client: str) -> None:
    port, key = served
    sent = sent_by(client, key)
    answer = await first_answer(port, sent)
    assert answer.status == 200
    expected = "list" if sent.startswith(b"GET ") else "text_completion"
    assert json.loads(answer.body)["object"] == expected


def test_the_captures_are_there() -> None:
    assert {name.split("-")[0] for name in CAPTURES} == {"curl", "java", "node"}
