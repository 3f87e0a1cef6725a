"""`starserve bench batch` and `compare`. Words only."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from serve.bench.batch import Task, engine_task, run, table
from serve.bench.child import findings
from serve.bench.compare import compare as compared
from serve.bench.questions import Question, QuestionsError, questions
from serve.bench.report import Report, ReportError
from serve.settings import Settings, SettingsError, cache_folder, embedded_config, load, overridden
from serve.weights.manifest import is_prepared, prepared_folder

console = Console(highlight=False, soft_wrap=True)


def say(sentence: str) -> None:
    console.print(f"starserve: {sentence}", markup=False)


def refuse(sentence: str, status: int = 2) -> None:
    Console(stderr=True, highlight=False, soft_wrap=True).print(f"starserve: {sentence}", markup=False)
    raise typer.Exit(status)


def batch(
    config: Annotated[Path, typer.Argument(help="The deployment's YAML; without one, SmolLM2 on this CPU.",
                                           default_factory=embedded_config)],
    model: Annotated[str | None, typer.Option(help="Which of its models; the first without it.")] = None,
    prompts: Annotated[str, typer.Option(help="humaneval, editing, a shape such as 128/256x64, or a file.")]
    = "humaneval",
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first so many prompts.")] = None,
    runs: Annotated[int, typer.Option(min=1, help="Measured runs; `compare` wants three.")] = 3,
    hugging_face: Annotated[bool, typer.Option("--hugging-face", help="Static batches of Hugging Face beside.")]
    = False,
    change: Annotated[list[str] | None, typer.Option("--set", help="engine.ngram_tokens=4: a field of the model.")]
    = None,
    price_per_hour: Annotated[float | None, typer.Option(min=0, help="What this machine costs.")] = None,
    answers: Annotated[Path | None, typer.Option(help="Answer everything once, into this file; resumes.")] = None,
    save: Annotated[Path | None, typer.Option(help="Write the report here, as JSON, for `bench compare`.")] = None,
) -> None:  # fmt: skip
    """Offline throughput of a model's engine on real prompts, or the answers to a whole dataset.

    Measures: N runs of all prompts at once, after a warm-up on other prompts, each run with a cold prefix cache.
    With --answers: a row per prompt in OpenAI's batch format; a bad line gets a row with its error, and after a kill
    the same command goes on where it stopped.
    """
    try:
        settings = one_model(load(config), model, change or [])
        folder = prepared(settings)
        asked = questions(prompts, json.loads((folder / "config.json").read_text())["vocab_size"])[:limit]
        if answers is not None:
            return _answer_all(settings, folder, asked, answers)
        report = run(Task(settings, folder, prompts, asked, runs, hugging_face, price_per_hour), say)
    except (SettingsError, QuestionsError) as e:
        return refuse(str(e))
    except RuntimeError as e:
        return refuse(str(e), 1)
    print_table([(f"{settings.models[0].name}, {prompts}", f"median of {runs}"), *table(report)])
    if save is not None:
        report.save(save)


def compare(
    a: Annotated[Path, typer.Argument(help="A report of `bench batch`.")],
    b: Annotated[Path, typer.Argument(help="Another, measured the same way.")],
    differ: Annotated[list[str] | None, typer.Option(help="A condition that is meant to differ, by its name.")] = None,
    least: Annotated[float, typer.Option(min=0, help="A smaller change counts as none.")] = 0.03,
) -> None:
    """Is B faster than A? Faster, slower or undecided, with a 95 % confidence interval.

    Refuses reports whose configurations, machines, prompts or cache-hit rates differ. Exit status 1: B is slower.
    """
    try:
        verdicts = compared(Report.read(a), Report.read(b), differ or (), least)
    except ReportError as e:
        return refuse(str(e))
    rows = [("metric", "B ÷ A", "95 % interval", "B is")]
    rows += [(v.name, f"{v.ratio:.3f}", f"{v.low:.3f} to {v.high:.3f}", v.says) for v in verdicts]
    print_table(rows)
    raise typer.Exit(int(any(v.says == "slower" for v in verdicts)))


def one_model(settings: Settings, name: str | None, changes: Iterable[str]) -> Settings:
    models = [m for m in settings.models if name in (None, m.name)]
    if not models:
        raise SettingsError(f"--model {name}: the configuration has {', '.join(m.name for m in settings.models)}")
    return settings.model_copy(update={"models": (overridden(models[0], changes),)})


def prepared(settings: Settings) -> Path:
    (model,) = settings.models
    if not is_prepared(model, cache_folder()):
        raise SettingsError(f"{model.name} is not prepared: run `starserve model prepare` with this configuration")
    return prepared_folder(model, cache_folder())


def _answer_all(settings: Settings, folder: Path, asked: list[Question], answers: Path) -> None:
    words = json.dumps([[q.question_id, q.body] for q in asked], sort_keys=True).encode()
    made_from = {"dataset": hashlib.sha256(words).hexdigest(), "model": folder.name}
    (model,) = settings.models
    task = {
        **engine_task(settings, folder), "answers": str(answers), "made_from": made_from,
        "at_once": 2 * model.engine.max_num_seqs,
        "questions": [{"question_id": q.question_id, "form": q.form, "body": q.body, "problem": q.problem}
                      for q in asked],
    }  # fmt: skip
    for line in findings("serve.bench.dataset_run", task, "not finished"):
        if "left" in line:
            say(f"{line['found']} of {len(asked)} have an answer, {line['left']} are left")
        elif "done" in line:
            say(f"all {line['done']} have a row in {answers}")
        else:
            rate = line["output_tokens"] / line["wall_s"]
            say(f"{line['answered']} of {len(asked)} answered, {line['refused']} refused, {rate:.0f} output tokens/s")


def numbers(given: str) -> list[int]:
    try:
        numbers = [int(part) for part in given.split(",")]
    except ValueError:
        numbers = [0]
    if min(numbers) < 1:
        raise typer.BadParameter(f"{given}: give numbers above 0 with commas between, such as 1,8,64")
    return numbers


def print_table(rows: list[Any]) -> None:
    head, *rest = rows
    printed = Table(*head, box=SIMPLE)
    for row in rest:
        printed.add_row(*row)
    console.print(printed)
