"""Tokenizers. No transformers and no torch in this process. Encoding a long text belongs in a thread.

Two objects per model, never mutated after construction (flipping the switch on a shared one is a race):
`plain` reads every text as text; control tokens are placed by id.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders
from tokenizers.pre_tokenizers import ByteLevel

from serve.fim import shares
from serve.prompts import ModelTemplate
from serve.words import Rendered

# A batch of one needs no threads of the library's own; they would have to survive forks.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
_BYTE_TOKEN = re.compile(r"<0x([0-9A-F]{2})>")  # how vocabularies with byte fallback name a byte


class Vocabulary:
    """The tokenizer of one prepared model. `size` counts ids that a prompt may hold."""

    def __init__(self, folder: Path) -> None:
        self._plain = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._plain.encode_special_tokens = True
        self.size: int = json.loads((folder / "config.json").read_text())["vocab_size"]
        described: dict[str, Any] = json.loads((folder / "tokenizer_config.json").read_text())
        self.eos = _token_text(described.get("eos_token"))
        self.control_tokens = tuple(t.content for t in self._plain.get_added_tokens_decoder().values() if t.special)
        self._byte_of, self._spelled = _byte_level(self._plain), dict[int, bytes]()
        jinja = folder / "chat_template.jinja"
        source = jinja.read_text() if jinja.exists() else described.get("chat_template")
        self.template = None
        if isinstance(source, str):
            bos = _token_text(described.get("bos_token"))
            self.template = ModelTemplate(source, self.control_tokens, bos, self.eos)

    def encode(self, prompt: Rendered, room: int | None = None) -> tuple[int, ...]:
        """Token ids; with `room`, texts that may be cut are cut until that many tokens are left, if that will do."""
        pieces = [self._piece(prompt, place) for place in range(len(prompt.segments))]
        if room is not None and (over := sum(map(len, pieces)) - room) > 0:
            self._cut(prompt, pieces, over)
        return tuple(i for piece in pieces for i in piece)

    def _piece(self, prompt: Rendered, place: int) -> list[int]:
        segment = prompt.segments[place]
        if segment.control:
            return [self.id_of(segment.text)]
        add_bos = prompt.add_bos and place == 0
        # As a batch of one: alone, the library holds the interpreter until a long text is done, and all threads wait.
        return list(self._plain.encode_batch_fast([segment.text], add_special_tokens=add_bos)[0].ids)

    def _cut(self, prompt: Rendered, pieces: list[list[int]], over: int) -> None:
        """What is nearest to the cursor stays: the end of what stands before it, the start of what follows."""
        cuts = {s.cut: place for place, s in enumerate(prompt.segments) if s.cut}
        before, after = cuts.get("start"), cuts.get("end")
        lengths = [0 if place is None else len(pieces[place]) for place in (before, after)]
        kept_before, kept_after = shares(lengths[0], lengths[1], max(0, sum(lengths) - over))
        if before is not None:
            pieces[before] = pieces[before][lengths[0] - kept_before :]
        if after is not None:
            pieces[after] = pieces[after][:kept_after]

    def id_of(self, control_token: str) -> int:
        found = self._plain.token_to_id(control_token)
        assert found is not None, "a template placed a control token that the vocabulary lacks"
        return int(found)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of a prompt that came as ids; control tokens show."""
        return self._plain.decode_batch([ids], skip_special_tokens=False)[0]

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
        if self._byte_of and name not in self.control_tokens and all(c in self._byte_of for c in name):
            return bytes(self._byte_of[c] for c in name)
        if byte := _BYTE_TOKEN.fullmatch(name):
            return bytes([int(byte[1], 16)])
        return self._plain.decode([token_id], skip_special_tokens=False).encode()


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
