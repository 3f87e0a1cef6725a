"""Tokenizers: every token's bytes, and prompts back to text."""

from __future__ import annotations

from pathlib import Path

from serve.tokens import Vocabulary
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


def _is_text(raw: bytes) -> bool:
    try:
        raw.decode()
    except UnicodeDecodeError:
        return False
    return True
