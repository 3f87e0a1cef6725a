"""Tokenizers: every token's bytes, and prompts back to text."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import pytest

from serve.tokens import TokenizerPool, Vocabulary
from serve.words import Rendered, Segment

TEXT = "def f(x):\n\treturn 'é ß 漢字 🦊'  # <fim_prefix>\n"


def test_the_bytes_of_all_tokens_joined_are_the_text(words_folder: Path) -> None:
    vocabulary = Vocabulary(words_folder)
    ids = vocabulary.encode(Rendered((Segment(TEXT),)))
    spelled = [vocabulary.spell(i) for i in ids]
    assert b"".join(spelled) == TEXT.encode()
    assert any(not _is_text(piece) for piece in spelled), "no token of this text is a part of a character"
    assert vocabulary.decode(ids) == TEXT


def test_control_tokens_and_padding_have_a_spelling_too(words_folder: Path) -> None:
    vocabulary = Vocabulary(words_folder)
    assert vocabulary.spell(0) == b"<|endoftext|>"
    assert vocabulary.spell(10**6) == b""


async def test_one_tenant_never_holds_the_last_thread_also_not_by_leaving() -> None:
    pool, ended, begun = TokenizerPool(2), threading.Event(), list[int]()

    def long(number: int) -> None:
        begun.append(number)
        assert ended.wait(60)

    try:
        for leaving in (False, True):
            flood = [asyncio.create_task(pool.run("mallory", long, number)) for number in range(20)]
            async with asyncio.timeout(10):
                while not begun:  # noqa: ASYNC110 - a thread tells no loop
                    await asyncio.sleep(0.001)
            if leaving:
                for task in flood:
                    task.cancel()
                await asyncio.gather(*flood, return_exceptions=True)
                flood.append(asyncio.create_task(pool.run("mallory", long, 20)))
            assert await asyncio.wait_for(pool.run("alice", lambda: 7), 10) == 7
            await asyncio.sleep(0.05)
            assert begun == [0]
            ended.set()
            await asyncio.gather(*flood, return_exceptions=True)
            assert begun == ([0, 20] if leaving else list(range(20)))
            begun.clear()
            ended.clear()
    finally:
        ended.set()
    await asyncio.sleep(0.05)
    assert not pool._lines


async def test_a_piece_of_work_that_fails_gives_its_place_back() -> None:
    pool = TokenizerPool(1)
    for _ in range(3):
        with pytest.raises(ZeroDivisionError):
            await pool.run("acme", lambda: 1 // 0)
    assert await pool.run("other", lambda: 7) == 7


def _is_text(raw: bytes) -> bool:
    try:
        raw.decode()
    except UnicodeDecodeError:
        return False
    return True
