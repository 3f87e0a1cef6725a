"""Tokenizers, in a bounded pool of threads. No transformers and no torch in this process.

Two objects per model, never mutated after construction (flipping the switch on a shared one is a race):
`plain` reads every text as text; control tokens are placed by id.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from tokenizers import Tokenizer, decoders
from tokenizers.pre_tokenizers import ByteLevel

from serve.prompts import ModelTemplate, Rendered

P = ParamSpec("P")
T = TypeVar("T")
_BYTE_TOKEN = re.compile(r"<0x([0-9A-F]{2})>")  # how vocabularies with byte fallback name a byte


class Vocabulary:
    """The tokenizer of one prepared model. `size` counts ids that a prompt may hold."""

    def __init__(self, folder: Path) -> None:
        self._plain = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._plain.encode_special_tokens = True
        self.size: int = json.loads((folder / "config.json").read_text())["vocab_size"]
        described: dict[str, Any] = json.loads((folder / "tokenizer_config.json").read_text())
        self.eos = _token_text(described.get("eos_token"))
        self._control = tuple(t.content for t in self._plain.get_added_tokens_decoder().values() if t.special)
        self._byte_of, self._spelled = _byte_level(self._plain), dict[int, bytes]()
        jinja = folder / "chat_template.jinja"
        source = jinja.read_text() if jinja.exists() else described.get("chat_template")
        self.template = None
        if isinstance(source, str):
            self.template = ModelTemplate(source, self._control, _token_text(described.get("bos_token")), self.eos)

    def encode(self, prompt: Rendered) -> tuple[int, ...]:
        ids: list[int] = []
        for place, segment in enumerate(prompt.segments):
            if segment.control:
                control = self._plain.token_to_id(segment.text)
                assert control is not None, "a template placed a control token that the vocabulary lacks"
                ids.append(control)
            else:
                ids += self._plain.encode(segment.text, add_special_tokens=prompt.add_bos and place == 0).ids
        return tuple(ids)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of a prompt that came as ids; control tokens show."""
        return self._plain.decode(ids, skip_special_tokens=False)

    def spell(self, token_id: int) -> bytes:
        """The bytes of one token; several tokens may share a character, so they need not be text."""
        found = self._spelled.get(token_id)
        if found is None:
            found = self._spelled[token_id] = self._bytes_of(token_id)
        return found

    def _bytes_of(self, token_id: int) -> bytes:
        name = self._plain.id_to_token(token_id)
        if name is None:  # the engine's vocabulary may be padded
            return b""
        if self._byte_of and name not in self._control and all(c in self._byte_of for c in name):
            return bytes(self._byte_of[c] for c in name)
        if byte := _BYTE_TOKEN.fullmatch(name):
            return bytes([int(byte[1], 16)])
        return self._plain.decode([token_id], skip_special_tokens=False).encode()


class TokenizerPool:
    """Work on text, off the event loop; at most `threads` pieces at a time."""

    def __init__(self, threads: int) -> None:
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="tokenize")

    async def run(self, work: Callable[P, T], *arguments: P.args, **named: P.kwargs) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, partial(work, *arguments, **named))


def _byte_level(tokenizer: Tokenizer) -> dict[str, int]:
    """The byte behind each letter of a byte-level vocabulary; empty for another kind. Learned from the library."""
    if not isinstance(tokenizer.decoder, decoders.ByteLevel):
        return {}
    level = ByteLevel(add_prefix_space=False, use_regex=False)
    letters: dict[str, int] = {}
    # Every byte that UTF-8 uses: in characters of one and two, of three, and of four bytes. 0xD800… are no text.
    for code in (
        *range(0x800),
        *range(0x800, 0xD800, 0x800),
        *range(0xE000, 0x10000, 0x1000),
        *range(0x10000, 0x110000, 0x10000),
    ):
        spelled = "".join(piece for piece, _ in level.pre_tokenize_str(chr(code)))
        letters |= dict(zip(spelled, chr(code).encode(), strict=True))
    return letters


def _token_text(token: Any) -> str:
    text = token.get("content") if isinstance(token, dict) else token
    return text if isinstance(text, str) else ""
