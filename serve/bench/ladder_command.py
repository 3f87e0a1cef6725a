"""`starserve bench ladder`. Words only."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Annotated

import typer

from serve.bench import peers as other_stacks
from serve.bench.batch_command import numbers, one_model, prepared, print_table, refuse, say
from serve.bench.ladder import Wall, climb, doubts, table
from serve.bench.tiny_model import tiny as made_tiny
from serve.bench.trace import Trace
from serve.settings import SettingsError, cache_folder, embedded_config, load
from serve.weights.prepare import prepare


def ladder(
    config: Annotated[Path, typer.Argument(help="The deployment's YAML; without one, SmolLM2 on this CPU.",
                                           default_factory=embedded_config)],
    model: Annotated[str | None, typer.Option(help="Which of its models; the first without it.")] = None,
    streams: Annotated[str, typer.Option(help="Streams at once, such as 8 or 1,8,64.")] = "8",
    prompt: Annotated[int, typer.Option(min=1, help="Tokens of each prompt.")] = 32,
    output: Annotated[int, typer.Option(min=2, help="Tokens of each answer.")] = 128,
    seconds: Annotated[float, typer.Option(min=0.5, help="Length of a round.")] = 10,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds of each rung; medians are printed.")] = 3,
    tiny: Annotated[bool, typer.Option("--tiny", help="A tiny random model of the same architecture instead: its "
                                       "engine costs next to nothing, so that serving shows.")] = False,
    peers: Annotated[Path | None, typer.Option(help="loadtest/peers of a checkout, after its setup: LiteLLM and Ray "
                                               "Serve LLM climb too.")] = None,
    change: Annotated[list[str] | None, typer.Option("--set", help="engine.cores=1: a field of the model.")] = None,
    save: Annotated[Path | None, typer.Option(help="Write the report here, as JSON.")] = None,
) -> None:  # fmt: skip
    """What serving costs: the same trace against the engine in process, vLLM's own server, starserve, and its peers.

    Tokens per second, CPU of all serving processes outside the engine core per token, TTFT added, tokens per chunk and
    gaps between chunks, in alternating rounds with the same engine settings.
    """
    try:
        settings, cache = one_model(load(config), model, change or []), cache_folder()
        if peers is not None:
            other_stacks.check(peers)
        folder = prepared(settings)
        with tempfile.TemporaryDirectory(prefix="ladder-") as made:
            if tiny:
                cache = Path(made) / "cache"
                settings = made_tiny(settings, folder, Path(made) / "model")
                folder = prepare(settings.models[0], cache, lambda _: None)
            vocabulary = json.loads((folder / "config.json").read_text())["vocab_size"]
            name = settings.models[0].name
            traces = [Trace(name, vocabulary, n, prompt, output, seconds) for n in numbers(streams)]
            report = climb(Wall(settings, cache, folder, peers), traces, rounds, say)
    except SettingsError as e:
        return refuse(str(e))
    except RuntimeError as e:
        return refuse(str(e), 1)
    print_table(table(report))
    for doubt in doubts(report):
        say(doubt)
    if save is not None:
        save.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
