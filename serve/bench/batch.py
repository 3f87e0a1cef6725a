"""`starserve bench batch`: tokens per second of one model's engine when all prompts are there at once.

The engine runs in a process of its own, with the settings of the configuration. Each run has a cache salt of its own,
so that no run finds another's blocks; what prompts of one run share (the Alpaca frame) is found, and told.
"""

from __future__ import annotations

import hashlib
import json
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from serve.bench.child import findings
from serve.bench.machine import measured
from serve.bench.questions import Question
from serve.bench.report import Metric, Report, flat, machine_conditions
from serve.model_settings import Model
from serve.plan import Machine, Shape, work
from serve.settings import Settings

Say = Callable[[str], None]
_BYTES = {"bfloat16": 2, "float16": 2, "float32": 4}


@dataclass(frozen=True, slots=True)
class Task:
    """What to measure. `settings` hold the one model; `folder` is where it lies prepared."""

    settings: Settings
    folder: Path
    source: str  # of the questions, as the user named it
    asked: Sequence[Question]
    runs: int = 3
    hugging_face: bool = False  # static batches beside
    price_per_hour: float | None = None  # of the machine, in any currency

    @property
    def model(self) -> Model:
        return self.settings.models[0]

    @property
    def config(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.folder / "config.json").read_text())
        return found


def run(task: Task, say: Say) -> Report:
    """RuntimeError with a sentence where the engine cannot do it."""
    say("measuring memory bandwidth and arithmetic")
    machine = measured(task.model.engine.device, task.model.engine.dtype)
    lines = _engine(task)
    say("starting the engine")
    start_s = next(lines)["start_s"]
    prepared = next(lines)
    say(f"engine ready after {start_s:.0f} s; {len(prepared['jobs'])} prompts, {_tokens(prepared):,} tokens")
    runs = [_told(line, task, machine, f"run {number} of {task.runs}", say) for number, line in enumerate(lines, 1)]
    beside = {"hugging_face": _static(task, prepared["jobs"], say)} if task.hugging_face else {}
    first = runs[0]
    return Report(
        "batch", _conditions(task), _metrics(runs), first["cached_tokens"] / first["prompt_tokens"],
        details={"machine": asdict(machine), "start_s": start_s, "tokenise_s": prepared["tokenise_s"], "runs": runs,
                 "price_per_hour": task.price_per_hour, **beside},
    )  # fmt: skip


def engine_task(settings: Settings, folder: Path) -> dict[str, Any]:
    """What `local_model` needs."""
    return {"settings": settings.model_dump(mode="json"), "folder": str(folder)}


def _engine(task: Task) -> Iterator[Any]:
    wanted = {
        **engine_task(task.settings, task.folder), "questions": [asdict(q) for q in task.asked], "runs": task.runs,
        "vocabulary": task.config["vocab_size"], "batch": task.model.engine.max_num_seqs,
    }  # fmt: skip
    return findings("serve.bench.batch_run", wanted, "the engine")


def _told(line: dict[str, Any], task: Task, machine: Machine, name: str, say: Say) -> dict[str, Any]:
    """The run with what follows from it; it is said, too."""
    computed, rate = line.pop("computed"), line["output_tokens"] / line["wall_s"]
    line |= {"output_tokens_s": rate, "requests_s": line["requests"] / line["wall_s"],
             "prompt_tokens_s": line["prompt_tokens"] / line["wall_s"]}  # fmt: skip
    if task.price_per_hour is not None:
        line["price_per_million_tokens"] = task.price_per_hour / rate / 3600 * 1e6
    try:
        shape = Shape.of(task.config, _BYTES[task.model.engine.dtype])
    except ValueError as e:
        line["roofline"] = str(e)
    else:
        least = work(shape, computed, line["mean_batch"], task.model.engine.tensor_parallel_size)
        line |= {"mbu": least.mbu(machine, line["wall_s"]), "mfu": least.mfu(machine, line["wall_s"]),
                 "percent_of_roofline": 100 * least.least_s(machine) / line["wall_s"]}  # fmt: skip
    say(f"{name}: {rate:.0f} output tokens/s, {line['requests_s']:.2f} requests/s")
    return line


def _static(task: Task, jobs: Sequence[Mapping[str, Any]], say: Say) -> list[dict[str, Any]]:
    if not all(job["greedy"] for job in jobs) or len({job["ignore_eos"] for job in jobs}) > 1:
        raise RuntimeError("Hugging Face beside: every prompt must be greedy (temperature 0), without stop strings and "
                           "n, and all with the same ignore_eos")  # fmt: skip
    engine = task.model.engine
    wanted = {"folder": str(task.folder), "dtype": engine.dtype, "device": engine.device, "runs": task.runs,
              "threads": int(engine.cores), "batch": engine.max_num_seqs, "jobs": jobs}  # fmt: skip
    runs = []
    for number, line in enumerate(findings("serve.bench.static_run", wanted, "Hugging Face"), 1):
        line |= {"output_tokens_s": line["output_tokens"] / line["wall_s"],
                 "requests_s": line["requests"] / line["wall_s"]}  # fmt: skip
        say(f"Hugging Face, run {number} of {task.runs}: {line['output_tokens_s']:.0f} output tokens/s")
        runs.append(line)
    return runs


def _conditions(task: Task) -> dict[str, Any]:
    words = json.dumps([asdict(q) for q in task.asked], sort_keys=True).encode()
    model = task.model.model_dump(mode="json", include={"name", "context_tokens", "templates", "defaults", "engine"})
    asked = {"source": task.source, "number": len(task.asked), "sha256": hashlib.sha256(words).hexdigest()}
    return {**flat("", model), **flat("prompts", asked), **machine_conditions()}


def _metrics(runs: Sequence[Mapping[str, Any]]) -> dict[str, Metric]:
    names = {"output_tokens_s": "higher", "requests_s": "higher", "ttft_s": "lower", "tpot_s": "lower"}
    return {name: Metric([run[name] for run in runs], better) for name, better in names.items()}  # type: ignore[arg-type]


def _tokens(prepared: Mapping[str, Any]) -> int:
    return sum(len(job["prompt_ids"]) for job in prepared["jobs"])


def table(report: Report) -> list[tuple[str, str]]:
    """Medians over the runs, with their units."""
    runs = report.details["runs"]

    def median(name: str) -> float | None:
        values = [run[name] for run in runs if name in run]
        return statistics.median(values) if values else None

    lines = [
        ("output tokens/s", "output_tokens_s", "{:.0f}"), ("requests/s", "requests_s", "{:.2f}"),
        ("prompt tokens/s", "prompt_tokens_s", "{:.0f}"), ("mean batch", "mean_batch", "{:.1f}"),
        ("tokens per step and sequence", "", ""), ("TTFT, median, s", "ttft_s", "{:.3f}"),
        ("TPOT, median, ms", "tpot_s", ""), ("% of the roofline", "percent_of_roofline", "{:.0f}"),
        ("MBU", "mbu", "{:.2f}"), ("MFU", "mfu", "{:.2f}"),
        ("price per million output tokens", "price_per_million_tokens", "{:.4g}"),
    ]  # fmt: skip
    rows = []
    for title, name, style in lines:
        if name == "tpot_s":
            rows.append((title, f"{1000 * (median(name) or 0):.1f}"))
        elif not name:
            rows.append((title, f"{runs[0]['output_tokens'] / runs[0]['messages']:.2f}"))
        elif (value := median(name)) is not None:
            rows.append((title, style.format(value)))
    rows.append(("prompt tokens found in the cache", f"{100 * report.cached_share:.0f} %"))
    if beside := report.details.get("hugging_face"):
        rate = statistics.median(run["output_tokens_s"] for run in beside)
        rows += [("Hugging Face static batches, output tokens/s", f"{rate:.0f}"),
                 ("ours ÷ Hugging Face", f"{(median('output_tokens_s') or 0) / rate:.2f}")]  # fmt: skip
    return rows
