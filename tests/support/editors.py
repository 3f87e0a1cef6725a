"""What editors send for a completion around the cursor, each after its own source; the texts are ours.

`before` and `after` the cursor are the same for all; so are the token ids that must reach the engine.
"""

from __future__ import annotations

from typing import Any, NamedTuple

BEFORE, AFTER = "def add(a, b):\n    ", "\n\nprint(add(1, 2))\n"
PSM = f"<fim_prefix>{BEFORE}<fim_suffix>{AFTER}<fim_middle>"
SPM = f"<fim_prefix><fim_suffix>{AFTER}<fim_middle>{BEFORE}"


class Editor(NamedTuple):
    path: str
    body: dict[str, Any]


EDITORS = {
    # huggingface/llm-ls, crates/llm-ls/src/adaptors.rs: build_openai_body. The client renders the markers.
    "llm-ls": Editor("/v1/completions", {
        "prompt": PSM, "model": "tiny", "max_tokens": 60, "temperature": 0.2, "top_p": 0.95,
        "stop": ["<|endoftext|>"],
    }),
    # continuedev/continue, core/llm/llms/OpenAI.ts: _legacystreamComplete; the stops are those of
    # core/autocomplete/templating (template, multi-line and common ones).
    "Continue, rendered": Editor("/v1/completions", {
        "model": "tiny", "max_tokens": 256, "temperature": 0.01, "stream": True, "prompt": PSM,
        "stop": ["<fim_prefix>", "<fim_suffix>", "<fim_middle>", "<file_sep>", "<|endoftext|>", "\n\n", "\r\n\r\n",
                 "/src/", "#- coding: utf-8", "```"],
    }),
    # The same project, _streamFim.
    "Continue, fim": Editor("/v1/fim/completions", {
        "model": "tiny", "prompt": BEFORE, "suffix": AFTER, "max_tokens": 256, "temperature": 0.01,
        "stop": ["\n\n", "\r\n\r\n", "/src/", "#- coding: utf-8", "```"], "stream": True,
    }),
    # TabbyML/tabby, crates/http-api-bindings/src/completion/openai.rs: CompletionRequest.
    "Tabby, openai": Editor("/v1/completions", {
        "model": "tiny", "prompt": BEFORE, "suffix": AFTER, "max_tokens": 64, "temperature": 0.1, "stream": True,
        "presence_penalty": 0.0,
    }),
    # The same, completion/mistral.rs: FIMRequest; the seed is a u64.
    "Tabby, mistral": Editor("/v1/fim/completions", {
        "prompt": BEFORE, "suffix": AFTER, "model": "tiny", "temperature": 0.1, "max_tokens": 64, "stream": True,
        "random_seed": (1 << 64) - 1,
    }),
    # twinnydotdev/twinny, src/extension/completion/request-body.ts: the openai-compatible provider.
    "Twinny": Editor("/v1/completions", {
        "model": "tiny", "prompt": PSM, "stream": True, "keep_alive": "5m",
        "options": {"temperature": 0.2, "num_predict": 64, "stop": ["<|endoftext|>", "<file_sep>"]},
    }),
    # The same, LMStudio.
    "Twinny, LM Studio": Editor("/v1/completions", {
        "model": "tiny", "prompt": PSM, "stream": True, "temperature": 0.2, "max_tokens": 64,
        "stop": ["<|endoftext|>", "<file_sep>"],
    }),
    # OpenAI's older address with the model in the path, where Copilot's `overrideProxyUrl` sends.
    "engines": Editor("/v1/engines/tiny/completions", {
        "prompt": BEFORE, "suffix": AFTER, "max_tokens": 64, "temperature": 0, "top_p": 1, "n": 1,
        "stop": ["\n"], "stream": True, "extra": {"language": "python"}, "nwo": "someone/something",
    }),
}  # fmt: skip
