"""Hugging Face `generate` in static batches: what one would run without a serving engine. A process of its own.

Its own best: prompts of like length share a batch, because a batch lasts as long as its longest answer.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any


def measure(task: Mapping[str, Any]) -> None:
    """A line per run. `task`: folder, dtype, device, threads, batch, runs, jobs (token ids and max_tokens)."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(max(1, int(task["threads"])))
    device = {"gpu": "cuda"}.get(task["device"], task["device"])
    model: Any = AutoModelForCausalLM.from_pretrained(task["folder"], dtype=getattr(torch, task["dtype"]))
    model = model.to(device).eval()
    jobs = sorted(task["jobs"], key=lambda job: len(job["prompt_ids"]))
    _answer(model, [{**job, "max_tokens": 4} for job in jobs[: task["batch"]]], device)  # warms up
    for _ in range(task["runs"]):
        began, made = time.monotonic(), 0
        for batch in _batches(jobs, task["batch"]):
            made += _answer(model, batch, device)
        line = {"wall_s": time.monotonic() - began, "output_tokens": made, "requests": len(jobs)}
        print(json.dumps(line), flush=True)


def _batches(jobs: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    for start in range(0, len(jobs), size):
        yield jobs[start : start + size]


def _answer(model: Any, jobs: Sequence[Any], device: str) -> int:
    """Output tokens of one batch, each answer up to its end token or its own max_tokens."""
    import torch

    ends = model.generation_config.eos_token_id
    ends = [] if jobs[0]["ignore_eos"] or ends is None else ends if isinstance(ends, list) else [ends]
    widest, pad = max(len(job["prompt_ids"]) for job in jobs), (ends or [0])[0]
    ids = torch.full((len(jobs), widest), pad, device=device)
    mask = torch.zeros_like(ids)
    for row, job in enumerate(jobs):
        ids[row, widest - len(job["prompt_ids"]) :] = torch.tensor(job["prompt_ids"])
        mask[row, widest - len(job["prompt_ids"]) :] = 1
    with torch.inference_mode():
        out = model.generate(
            ids, attention_mask=mask, max_new_tokens=max(job["max_tokens"] for job in jobs), do_sample=False,
            eos_token_id=ends or None, pad_token_id=pad,
        )  # fmt: skip
    return sum(_length(row.tolist(), job["max_tokens"], ends) for row, job in zip(out[:, widest:], jobs, strict=True))


def _length(made: Sequence[int], most: int, ends: Sequence[int]) -> int:
    for place, token in enumerate(made[:most]):
        if token in ends:
            return place + 1
    return min(len(made), most)


if __name__ == "__main__":
    measure(json.load(sys.stdin))
