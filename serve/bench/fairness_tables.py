"""What `starserve bench fairness` prints, as rows of words; the first is the head."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from serve.bench.fairness import quantile

Row = Mapping[str, Any]


def shares_table(found: Sequence[Row]) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = [
        ("weights", "arm", "service heavy ÷ light", "fair", "fewest waiting", "requests sent", "tokens/s")
    ]
    for told in found:
        got, weights = told["service"], told["weights"]
        waiting = "/".join(str(min(told["least_waiting"][t], default=0)) for t in ("heavy", "light"))
        rows.append((
            f"{weights[0]}:{weights[1]}", told["arm"], f"{got['heavy'] / max(got['light'], 1e-9):.2f}",
            f"{weights[0] / weights[1]:.2f}", waiting, f"{told['sent']['heavy']}/{told['sent']['light']}",
            f"{told['output_tokens_s']:.0f}",
        ))  # fmt: skip
    return rows


def neighbours_table(found: Sequence[Row]) -> list[tuple[str, ...]]:
    """The light tenant's TTFT; some columns compare with in order of arrival, where that was measured."""
    in_order = next((told for told in found if told["arm"].startswith("fcfs")), None)
    rows: list[tuple[str, ...]] = [
        ("arm", "answers", "TTFT p95 s", "p50", "alone p95", "step ms", "alone + 3 steps", "÷ fcfs p95",
         "batch full %", "fewest waiting", "tokens/s")
    ]  # fmt: skip
    for told in found:
        p95, by_itself = quantile(told["ttft_s"], 0.95), quantile(told["alone"]["ttft_s"], 0.95)
        rows.append((
            told["arm"], str(len(told["ttft_s"])), f"{p95:.3f}", f"{statistics.median(told['ttft_s']):.3f}",
            f"{by_itself:.3f}", f"{1000 * told['step_s']:.0f}", f"{by_itself + 3 * told['step_s']:.3f}",
            f"{p95 / quantile(in_order['ttft_s'], 0.95):.3f}" if in_order else "-", f"{100 * told['full']:.0f}",
            str(told["least_waiting"]), f"{told['output_tokens_s']:.0f}",
        ))  # fmt: skip
    return rows


def crowd_table(found: Sequence[Row]) -> list[tuple[str, ...]]:
    """`due`: the smaller of what the few make by themselves and their share by weight, of what all make.

    Eight requests can have no more than 8 of the engines' places: where those are many, that is the bound.
    """
    rows: list[tuple[str, ...]] = [
        ("8 beside 200", "places", "share %", "due %", "got ÷ due", "fewest waiting", "tokens/s"),
    ]  # fmt: skip
    for told in found:
        waiting = "/".join(str(min(told["least_waiting"][t], default=0)) for t in ("few", "many"))
        rows.append((
            told["arm"], str(told["places"]), f"{100 * told['got']:.1f}", f"{100 * told['due']:.1f}",
            f"{told['got'] / told['due']:.2f}", waiting, f"{told['output_tokens_s']:.0f}",
        ))  # fmt: skip
    return rows


def refusals_table(told: Row) -> list[tuple[str, ...]]:
    flood, by_itself = told["flood"], told["alone"]["ttft_s"]
    ended = ", ".join(f"{name} {number}" for name, number in sorted(flood["ended"].items()))
    return [
        ("refusals per second", "ended", "answers beside", "TTFT p50 s", "p95", "alone p50", "p95"),
        (f"{flood['sent'] / flood['seconds']:.0f}", ended, str(len(told["ttft_s"])),
         f"{quantile(told['ttft_s'], 0.5):.3f}", f"{quantile(told['ttft_s'], 0.95):.3f}",
         f"{quantile(by_itself, 0.5):.3f}", f"{quantile(by_itself, 0.95):.3f}"),
    ]  # fmt: skip


def cost_table(found: Sequence[Row]) -> list[tuple[str, ...]]:
    """Medians of the rounds, and of the ratios within a round. CPU: of queue and reader, not of the engine core."""
    names = list(dict.fromkeys(str(told["arm"]) for told in found))
    of = {name: [told for told in found if told["arm"] == name] for name in names}
    rows: list[tuple[str, ...]] = [("one engine, policies in turn", "rounds", "tokens/s", "compared with", "ratio",
                                    "lowest", "highest", "CPU µs/token", "tokens in band interactive")]  # fmt: skip
    for name, runs in of.items():
        other = name.replace("reserve 1, ", "") if "reserve" in name else "fcfs"
        ratios = [a["output_tokens_s"] / b["output_tokens_s"] for a, b in zip(runs, of[other], strict=True)]
        medians = [statistics.median(run[n] for run in runs)
                   for n in ("output_tokens_s", "cpu_us_per_token", "interactive")]  # fmt: skip
        rows.append((
            name, str(len(runs)), f"{medians[0]:.0f}", other, f"{statistics.median(ratios):.3f}", f"{min(ratios):.3f}",
            f"{max(ratios):.3f}", f"{medians[1]:.1f}", f"{medians[2]:.0f}",
        ))  # fmt: skip
    return rows
