"""Tokenizers, in a bounded pool of threads. No transformers and no torch in this process.

Two objects per model, never mutated after construction (flipping the switch on a shared one is a race):
`plain` reads every text as text; control tokens are placed by id.
"""

from __future__ import annotations

import asyncio
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from serve.prompts import ModelTemplate, Rendered


class Vocabulary:
    """The tokenizer of one prepared model. `size` counts ids that a prompt may hold."""

    def __init__(self, folder: Path) -> None:
        self._plain = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._plain.encode_special_tokens = True
        self.size: int = json.loads((folder / "config.json").read_text())["vocab_size"]
        described: dict[str, Any] = json.loads((folder / "tokenizer_config.json").read_text())
        self.eos = _token_text(described.get("eos_token"))
        self._control = tuple(t.content for t in self._plain.get_added_tokens_decoder().values() if t.special)
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


class TokenizerPool:
    """Encodes off the event loop; at most `threads` texts at a time."""

    def __init__(self, threads: int) -> None:
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="tokenize")

    async def encode(self, vocabulary: Vocabulary, prompt: Rendered) -> tuple[int, ...]:
        return await asyncio.get_running_loop().run_in_executor(self._threads, vocabulary.encode, prompt)


def _token_text(token: Any) -> str:
    text = token.get("content") if isinstance(token, dict) else token
    return text if isinstance(text, str) else ""
