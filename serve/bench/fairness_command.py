"""`starserve bench fairness`. Words only."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from serve.bench.arena import Arm, arena
from serve.bench.batch import engine_task
from serve.bench.batch_command import numbers, one_model, prepared, print_table, refuse, say
from serve.bench.child import findings
from serve.bench.fairness import Player, alone, beside_refusals, crowd, neighbours, quantile, shares
from serve.bench.fairness_tables import cost_table, crowd_table, neighbours_table, refusals_table, shares_table
from serve.bench.report import machine_conditions
from serve.bench.tiny_model import tiny as made_tiny
from serve.settings import Settings, SettingsError, cache_folder, embedded_config, load
from serve.weights.prepare import prepare

RUN_S = 12.0  # of each policy, in each round of what the queue costs
ARMS = {"fair": Arm("fair"), "fcfs": Arm("fcfs"), "reserve": Arm("fair", reserve=1)}  # of neighbours


def fairness(
    config: Annotated[Path, typer.Argument(help="The deployment's YAML; without one, SmolLM2 on this CPU.",
                                           default_factory=embedded_config)],
    model: Annotated[str | None, typer.Option(help="Which of its models; the first without it.")] = None,
    weights: Annotated[str, typer.Option(help="Weights of the heavy tenant, the light one having 1.")] = "1,3",
    routers: Annotated[str, typer.Option(help="Numbers of routers; with 2 each tenant has one for itself.")] = "1",
    engines: Annotated[str, typer.Option(help="Numbers of engines.")] = "1",
    seconds: Annotated[float, typer.Option(min=0, help="Of each run for shares, longer than several long answers; 0 "
                                           "leaves them out.")] = 80,
    requests: Annotated[int, typer.Option(min=0, help="Of the light tenant beside a flood; 0 leaves that out.")] = 100,
    most: Annotated[float, typer.Option(min=10, help="Seconds that the light tenant may take for them.")] = 600,
    beside: Annotated[str, typer.Option(help="Which queues the light tenant meets, of fair, fcfs and reserve.")]
    = "fair,fcfs,reserve",
    together: Annotated[float, typer.Option("--crowd", min=0, help="Seconds of 8 requests at a time beside 200 on two "
                                            "engines; 0 leaves that out.")] = 60,
    flood: Annotated[float, typer.Option(min=0, help="Refused requests per second beside the light tenant; 0 leaves "
                                         "that out.")] = 2000,
    rounds: Annotated[int, typer.Option(min=0, help="Of what the queue costs in throughput, policies in turn on one "
                                        "engine; 0 leaves that out.")] = 8,
    tiny: Annotated[bool, typer.Option("--tiny", help="A tiny random model of the same architecture.")] = False,
    change: Annotated[list[str] | None, typer.Option("--set", help="engine.cores=1: a field of the model.")] = None,
    save: Annotated[Path | None, typer.Option(help="Write the report here, as JSON.")] = None,
) -> None:  # fmt: skip
    """Who gets what of a busy engine: the fair queue beside first come, first served.

    Shares: a heavy tenant (many requests, long answers) and a light one that both always wait. Neighbours: a light
    tenant that asks one request at a time beside a flood of 64 that always wait, and beside requests that are refused.
    Crowd: a tenant with 8 requests at a time beside one with 200, on two engines. Cost: throughput of one engine under
    each policy.
    """
    if unknown := sorted(set(chosen := beside.split(",")) - set(ARMS)):
        raise typer.BadParameter(f"--beside: {unknown[0]!r} is none of {', '.join(ARMS)}")
    try:
        settings, cache = one_model(load(config), model, change or []), cache_folder()
        folder = prepared(settings)
        with tempfile.TemporaryDirectory(prefix="fairness-") as made:
            if tiny:
                cache = Path(made) / "cache"
                settings = made_tiny(settings, folder, Path(made) / "model")
                folder = prepare(settings.models[0], cache, lambda _: None)
            stage = Stage(settings, cache, json.loads((folder / "config.json").read_text())["vocab_size"])
            report: dict[str, Any] = {
                "conditions": machine_conditions(),
                "shares": [stage.shares(arm, weight, seconds)
                           for weight, arm in _arms(numbers(weights), numbers(routers), numbers(engines))
                           if seconds],
                "neighbours": stage.neighbours(requests, most, chosen) if requests else [],
                "crowd": stage.crowd(together) if together else [],
                "refusals": stage.refusals(flood) if flood else None,
                "cost": stage.cost(folder, rounds) if rounds else [],
            }  # fmt: skip
    except SettingsError as e:
        return refuse(str(e))
    except RuntimeError as e:
        return refuse(str(e), 1)
    for name, table in (("shares", shares_table), ("crowd", crowd_table), ("neighbours", neighbours_table),
                        ("cost", cost_table)):  # fmt: skip
        if report[name]:
            print_table(table(report[name]))
    if report["refusals"]:
        print_table(refusals_table(report["refusals"]))
    if save is not None:
        save.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


def _arms(weights: Sequence[int], routers: Sequence[int], engines: Sequence[int]) -> list[tuple[int, Arm]]:
    """In order of arrival weights mean nothing: once is enough."""
    fair = [(weight, Arm("fair", routers=r, engines=n)) for n in engines for weight in weights for r in routers]
    return fair + [(weights[0], Arm("fcfs", engines=n)) for n in engines]


class Stage:
    """Runs the arms, one deployment after the other."""

    def __init__(self, settings: Settings, cache: Path, vocabulary: int) -> None:
        self._settings, self._cache, self._vocabulary = settings, cache, vocabulary
        self._places = settings.models[0].engine.max_num_seqs

    def shares(self, arm: Arm, weight: int, seconds: float) -> dict[str, Any]:
        places = self._places * arm.engines
        players = [Player("heavy", 20 * places, 64, 256, float(weight)), Player("light", 4 * places, 64, 32)]
        with arena(arm, self._settings, self._cache, self._vocabulary, players) as up:
            told = shares(up, players, seconds, seed=0)
        say(f"{arm.name}, weights {weight}:1: heavy got {100 * told['share']['heavy']:.1f} %")
        return {"arm": arm.name, "weights": [weight, 1], **told}

    def neighbours(self, requests: int, most_s: float, chosen: Sequence[str]) -> list[dict[str, Any]]:
        light, flood = Player("light", 1, 64, 32), Player("flood", self._places + 64, 64, 256)
        found = []
        for arm in (ARMS[name] for name in chosen):
            light = replace(light, band="interactive" if arm.reserve else "standard")
            with arena(arm, self._settings, self._cache, self._vocabulary, [light, flood]) as up:
                by_itself = alone(up, light, requests, seed=1)
                told = neighbours(up, light, flood, requests, most_s, self._places, seed=2)
            found.append({"arm": arm.name, "alone": by_itself, **told})
            say(f"{arm.name}: TTFT p95 {quantile(told['ttft_s'], 0.95):.3f} s beside the flood, "
                f"{quantile(by_itself['ttft_s'], 0.95):.3f} s alone")  # fmt: skip
        return found

    def crowd(self, seconds: float) -> list[dict[str, Any]]:
        few, many, found = Player("few", 8, 64, 64, varied=True), Player("many", 200, 64, 64, varied=True), []
        for arm in (Arm("fair", engines=2), Arm("fcfs", engines=2)):
            with arena(arm, self._settings, self._cache, self._vocabulary, [few, many]) as up:
                told = crowd(up, few, many, seconds, seed=3)
            found.append({"arm": arm.name, "places": 2 * self._places, **told})
            say(f"{arm.name}: 8 beside 200 got {100 * told['got']:.1f} % of {100 * told['due']:.1f} % that are due")
        return found

    def refusals(self, rate_s: float) -> dict[str, Any]:
        light, flood = Player("light", 1, 64, 32), Player("refused", 1, 64, 32, requests_per_minute=1)
        with arena(Arm("fair"), self._settings, self._cache, self._vocabulary, [light, flood]) as up:
            found: dict[str, Any] = beside_refusals(up, light, flood, rate_s, 40, seed=4)
        return found

    def cost(self, folder: Path, rounds: int) -> list[dict[str, Any]]:
        task = {**engine_task(self._settings, folder), "vocabulary": self._vocabulary, "rounds": rounds,
                "seconds": RUN_S}  # fmt: skip
        found = list[dict[str, Any]]()
        for run in findings("serve.bench.turns_run", task, "the queue's cost"):
            found.append(run)
            say(f"{run['arm']}: {run['output_tokens_s']:.0f} tokens/s, {run['cpu_us_per_token']:.1f} µs CPU per token")
        return found
