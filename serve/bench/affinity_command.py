"""`starserve bench affinity`. Words only."""

from __future__ import annotations

import json
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from serve.bench.affinity import CHOICES, Conversations, doubts, measure, middle, table
from serve.bench.batch_command import one_model, prepared, print_table, refuse, say
from serve.bench.report import machine_conditions
from serve.bench.tiny_model import tiny as made_tiny
from serve.settings import SettingsError, cache_folder, embedded_config, load
from serve.weights.prepare import prepare


def affinity(
    config: Annotated[Path, typer.Argument(help="The deployment's YAML; without one, SmolLM2 on this CPU.",
                                           default_factory=embedded_config)],
    model: Annotated[str | None, typer.Option(help="Which of its models; the first without it.")] = None,
    engines: Annotated[int, typer.Option(min=2, help="Engines of the model.")] = 2,
    routers: Annotated[int, typer.Option(min=1, help="Routers in front of them.")] = 1,
    users: Annotated[int, typer.Option(min=1, help="People who talk at once.")] = 16,
    turns: Annotated[int, typer.Option(min=2, help="Of each conversation.")] = 6,
    each: Annotated[int, typer.Option(min=1, help="Conversations of each user in a round.")] = 3,
    preamble: Annotated[int, typer.Option(min=0, help="Tokens with which all prompts begin.")] = 0,
    opening: Annotated[int, typer.Option(min=1, help="Tokens of a first question.")] = 256,
    added: Annotated[int, typer.Option(min=1, help="Tokens of each later question.")] = 128,
    output: Annotated[int, typer.Option(min=1, help="Tokens of each answer.")] = 32,
    pause: Annotated[float, typer.Option(min=0, help="Mean seconds that a user thinks before each turn.")] = 1,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds of each choice; medians are printed.")] = 3,
    tiny: Annotated[bool, typer.Option("--tiny", help="A tiny random model of the same architecture.")] = False,
    change: Annotated[list[str] | None, typer.Option("--set", help="engine.cores=1: a field of the model.")] = None,
    save: Annotated[Path | None, typer.Option(help="Write the report here, as JSON.")] = None,
) -> None:  # fmt: skip
    """Whether turns of a conversation should meet in one engine: engine.replica_choice balanced, then affinity.

    The same conversations on two deployments, one after the other: the share of prompt tokens found in the prefix
    cache, tokens per second, TTFT, and how even the engines were used.
    """
    try:
        settings, cache = (
            one_model(load(config), model, [*(change or []), f"engine.replicas={engines}"]),
            cache_folder(),
        )
        settings = settings.model_copy(update={"router": settings.router.model_copy(update={"replicas": routers})})
        folder = prepared(settings)
        with tempfile.TemporaryDirectory(prefix="affinity-") as made:
            if tiny:
                cache = Path(made) / "cache"
                settings = made_tiny(settings, folder, Path(made) / "model")
                folder = prepare(settings.models[0], cache, lambda _: None)
            vocabulary = json.loads((folder / "config.json").read_text())["vocab_size"]
            talk = Conversations(settings.models[0].name, vocabulary, users, turns, each, preamble, opening, added,
                                 output, pause)  # fmt: skip
            found = dict[str, list[dict[str, Any]]]()
            for choice in CHOICES:
                found[choice] = measure(settings, cache, talk, choice, range(rounds))
                say(f"{choice}: {100 * middle(found[choice], 'cached_share'):.1f} % of prompts found in the cache")
    except SettingsError as e:
        return refuse(str(e))
    except RuntimeError as e:
        return refuse(str(e), 1)
    print_table(table(found, talk))
    for doubt in doubts(found):
        say(doubt)
    if save is not None:
        report = {"conditions": machine_conditions(), "talk": asdict(talk), "rounds": found,
                  "engine": settings.models[0].engine.model_dump(mode="json")}  # fmt: skip
        save.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
