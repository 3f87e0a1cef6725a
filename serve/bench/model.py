"""`starserve bench model`: tokens per second of a shape with random weights, our plugin beside vLLM's own backend."""

from __future__ import annotations

import json
import os
import platform
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from serve.bench.child import findings
from serve.bench.engine_run import Point
from serve.bench.machine import measured
from serve.bench.shapes import SHAPES
from serve.plan import Machine, Shape, output_tokens_s
from serve.starcoder.rank import ranks as weights_of_ranks

Say = Callable[[str], None]
_BYTES = {"bfloat16": 2, "float16": 2, "float32": 4}
CLASSES: Mapping[str, Mapping[str, str]] = {"plugin": {}, "stock": {"VLLM_PLUGINS": "none"}}


@dataclass(frozen=True, slots=True)
class Task:
    """What to measure; every class gets the same."""

    shape: str
    engine: Mapping[str, Any]  # fields of the YAML's `engine`
    prompts: Sequence[int]
    batches: Sequence[int]
    output: int
    runs: int
    classes: Sequence[str] = tuple(CLASSES)


def run(task: Task, say: Say) -> dict[str, Any]:
    """The report: machine, what each class built, and its points with percent of the roofline."""
    say("measuring memory bandwidth and arithmetic")
    dtype, device = task.engine["dtype"], task.engine["device"]
    machine = measured(device, dtype)
    shape = Shape.of(SHAPES[task.shape], _BYTES[dtype])
    results = {name: _of_class(name, task, shape, machine, say) for name in task.classes}
    return {
        "when": datetime.now(UTC).isoformat(timespec="seconds"), "host": f"{platform.processor()} × {os.cpu_count()}",
        "machine": asdict(machine), "task": asdict(task), "classes": results,
    }  # fmt: skip


def _of_class(name: str, task: Task, shape: Shape, machine: Machine, say: Say) -> dict[str, Any]:
    say(f"{name}: starting an engine")
    lines = _lines(name, task)
    built: dict[str, Any] = next(lines)
    say(f"{name}: {built['class']} after {built['start_s']:.0f} s")
    ranks, points = task.engine["tensor_parallel_size"], []
    for line in lines:
        point = Point(*line)
        roof = output_tokens_s(shape, machine, point.prompt, point.output, point.batch, ranks)
        percent = 100 * point.output_tokens_s / roof
        say(f"{name}: prompt {point.prompt}, batch {point.batch}: {point.output_tokens_s:.0f} tokens/s, "
            f"{percent:.0f} % of the roofline")  # fmt: skip
        points.append({**point._asdict(), "percent_of_roofline": percent})
    return {**built, "bfloat16_weight_bytes_per_rank": _weights_of_a_rank(name, task), "points": points}


def _weights_of_a_rank(name: str, task: Task) -> int:
    """Counted on the meta device: an engine on a CPU repacks its matrices, and then they are no parameters."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(SHAPES[task.shape]))
        (rank,) = weights_of_ranks(Path(folder), [task.engine["tensor_parallel_size"]], CLASSES[name])
    return rank.weight_bytes


def _lines(name: str, task: Task) -> Iterator[Any]:
    config = SHAPES[task.shape]
    context = min(config["n_positions"], max(task.prompts) + task.output + 16)
    wanted = {**asdict(task), "shape": config, "any_class": name != "plugin", "context_tokens": context}
    return findings("serve.bench.engine_run", wanted, f"{name}: the engine failed", CLASSES[name])


def table(report: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Rows of text, the first being the head; with both classes, their ratio."""
    classes = report["classes"]
    head = ("prompt", "batch", *(f"{name} tokens/s" for name in classes), *(f"{name} TPOT ms" for name in classes),
            *(f"{name} % of roofline" for name in classes))  # fmt: skip
    rows = [(*head, "plugin ÷ stock") if set(classes) == set(CLASSES) else head]
    for points in zip(*(found["points"] for found in classes.values()), strict=True):
        row = [str(points[0]["prompt"]), str(points[0]["batch"])]
        row += [f"{p['output_tokens_s']:.0f}" for p in points] + [f"{1000 * p['tpot_s']:.1f}" for p in points]
        row += [f"{p['percent_of_roofline']:.0f}" for p in points]
        if len(rows[0]) > len(row):
            by_name = dict(zip(classes, points, strict=True))
            row.append(f"{by_name['plugin']['output_tokens_s'] / by_name['stock']['output_tokens_s']:.2f}")
        rows.append(tuple(row))
    return rows
