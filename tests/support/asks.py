"""One ask of each form with the prompt that it becomes, and Hugging Face's greedy answers."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from tests.support.alpaca import NO_INPUT, WITH_INPUT

ANSWER_TOKENS = 48
ASKS: dict[str, tuple[str, dict[str, Any], str]] = {
    "instruct": ("/v1/instruct", {"instruction": "Sort a list."}, NO_INPUT),
    "instruct with input": ("/v1/instruct", {"instruction": "Sort a list.", "input": "[2, 1]"}, WITH_INPUT),
    "completion": ("/v1/completions", {"prompt": "def f(x):\n    return"}, "def f(x):\n    return"),
    "chat": ("/v1/chat/completions", {"messages": [{"role": "user", "content": "Sort a list."}]}, NO_INPUT),
}


@cache
def greedy_ids(folder: Path, prompt: str, change: float = 0.0) -> tuple[int, ...]:
    """What Hugging Face's own tokenizer and `generate` make of a prompt; `change` is added to one weight."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        model.transformer.h[0].mlp.c_proj.weight[0] += change
    ids = torch.tensor([AutoTokenizer.from_pretrained(folder)(prompt).input_ids])
    made = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=ANSWER_TOKENS, do_sample=False)
    return tuple(int(i) for i in made[0, ids.shape[1] :])
