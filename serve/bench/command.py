"""`starserve bench …`. Words only; the work is in the files beside this one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from serve.bench.affinity_command import affinity
from serve.bench.batch_command import batch, compare, numbers
from serve.bench.fairness_command import fairness
from serve.bench.ladder_command import ladder
from serve.bench.ledger_command import ledger
from serve.bench.limits_command import limits
from serve.bench.model import CLASSES, Task, run, table
from serve.bench.shapes import SHAPES

cli = typer.Typer(no_args_is_help=True, help="Measure, beside a peer, with the same settings.")
console = Console(highlight=False, soft_wrap=True)


def _one_of(given: str, known: list[str], name: str) -> str:
    if given not in known:
        raise typer.BadParameter(f"--{name}: {given} is none of {', '.join(known)}")
    return given


@cli.callback()
def bench() -> None:
    """Measure, beside a peer, with the same settings."""


cli.command()(batch)
cli.command()(compare)
cli.command()(ladder)
cli.command()(fairness)
cli.command()(ledger)
cli.command()(limits)
cli.command()(affinity)


@cli.command()
def model(
    dummy_weights: Annotated[bool, typer.Option("--dummy-weights", help="Random weights; nothing else yet.")] = False,
    shape: Annotated[str, typer.Option(help=f"One of {', '.join(SHAPES)}.")] = "starcoder",
    device: Annotated[str, typer.Option(help="gpu or cpu.")] = "gpu",
    dtype: Annotated[str, typer.Option(help="Of weights and KV cache.")] = "bfloat16",
    tensor_parallel: Annotated[int, typer.Option(help="Ranks of the engine.")] = 1,
    eager: Annotated[bool, typer.Option("--eager", help="Without compilation.")] = False,
    kv_cache_gib: Annotated[float | None, typer.Option(help="Per rank; required on cpu.")] = None,
    prompts: Annotated[str, typer.Option(help="Prompt lengths, tokens.")] = "128,1024",
    batches: Annotated[str, typer.Option(help="Requests at once.")] = "1,8,32,64,128,256",
    output: Annotated[int, typer.Option(min=2, help="Tokens of each answer.")] = 128,
    runs: Annotated[int, typer.Option(min=1, help="Runs of each point; medians are printed.")] = 3,
    classes: Annotated[str, typer.Option(help="Who builds the model: plugin, stock, or both.")] = "plugin,stock",
    save: Annotated[Path | None, typer.Option(help="Write the whole report here, as JSON.")] = None,
) -> None:
    """Tokens per second of a StarCoder's shape, ours beside vLLM's own backend, and how near the roofline.

    No weights are needed. Each class gets an engine of its own, one after the other, with the same settings.
    """
    if not dummy_weights:
        raise typer.BadParameter("say --dummy-weights: this command knows random weights only")
    engine = {
        "device": _one_of(device, ["gpu", "cpu"], "device"), "tensor_parallel_size": tensor_parallel,
        "dtype": _one_of(dtype, ["bfloat16", "float16", "float32"], "dtype"), "enforce_eager": eager,
        "kv_cache_gib": kv_cache_gib, "cores": tensor_parallel,
    }  # fmt: skip
    if device == "cpu" and kv_cache_gib is None:
        raise typer.BadParameter("--kv-cache-gib is required on cpu")
    named = [_one_of(name, list(CLASSES), "classes") for name in classes.split(",")]
    _one_of(shape, list(SHAPES), "shape")
    task = Task(shape, engine, numbers(prompts), numbers(batches), output, runs, named)
    try:
        report = run(task, lambda sentence: console.print(f"starserve: {sentence}", markup=False))
    except RuntimeError as e:
        Console(stderr=True, highlight=False, soft_wrap=True).print(f"starserve: {e}", markup=False)
        raise typer.Exit(1) from None
    head, *rows = table(report)
    printed = Table(*(title.replace(" ", "\n", 1) for title in head), box=SIMPLE)
    for row in rows:
        printed.add_row(*row)
    console.print(printed)
    if save:
        save.write_text(json.dumps(report, indent=1))
