"""`starserve bench ladder`. Words only."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from serve.bench.batch_command import prepared, print_table, refuse, say
from serve.bench.ladder import climb, table
from serve.bench.trace import Trace
from serve.settings import SettingsError, embedded_config, load


def ladder(
    config: Annotated[Path, typer.Argument(help="A deployment's YAML with one model; without one, SmolLM2.",
                                           default_factory=embedded_config)],
    streams: Annotated[int, typer.Option(min=1, help="Streams at once.")] = 8,
    prompt: Annotated[int, typer.Option(min=1, help="Tokens of each prompt.")] = 32,
    output: Annotated[int, typer.Option(min=2, help="Tokens of each answer.")] = 128,
    seconds: Annotated[float, typer.Option(min=0.5, help="Length of a round.")] = 10,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds of each rung; medians are printed.")] = 3,
    save: Annotated[Path | None, typer.Option(help="Write the report here, as JSON.")] = None,
) -> None:  # fmt: skip
    """What serving costs: the same trace against the engine in process, vLLM's own server, and starserve.

    Tokens per second, CPU of all serving processes outside the engine core per token, TTFT added, tokens per chunk and
    gaps between chunks, in alternating rounds with the same engine settings.
    """
    try:
        settings = load(config)
        if len(settings.models) > 1:
            raise SettingsError("models: the ladder wants a configuration with one model")
        folder = prepared(settings)
        vocabulary = json.loads((folder / "config.json").read_text())["vocab_size"]
        trace = Trace(settings.models[0].name, vocabulary, streams, prompt, output, seconds)
        report = climb(settings, config, folder, trace, rounds, say)
    except SettingsError as e:
        return refuse(str(e))
    except RuntimeError as e:
        return refuse(str(e), 1)
    print_table(table(report))
    if save is not None:
        save.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
