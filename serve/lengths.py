"""How long the answers of a tenant are: what is held for the next one. Pure, and bounded in memory."""

from __future__ import annotations

import math
from array import array
from collections import OrderedDict
from typing import NamedTuple

from serve.words import Form

SAMPLES = 64  # the last so many answers
ENOUGH = 16  # answers after which the tenant's own lengths are believed
FIRST_TOKENS = 512  # held at most for an answer before that
QUANTILE = 0.9


class Kind(NamedTuple):
    """Answers that are alike."""

    tenant_id: str
    model: str
    form: Form


class Lengths:
    """The last lengths of each kind of answer; those used least recently are forgotten beyond `kinds`."""

    def __init__(self, kinds: int = 10_000) -> None:
        self._kinds = kinds
        self._lengths: OrderedDict[Kind, tuple[array[int], int]] = OrderedDict()  # with the place of the oldest

    def note(self, kind: Kind, output_tokens: int) -> None:
        """One answer (of one choice) has ended, or was left, after so many tokens."""
        lengths, at = self._lengths.pop(kind, (array("I"), 0))
        if len(lengths) < SAMPLES:
            lengths.append(output_tokens)
        else:
            lengths[at] = output_tokens
        self._lengths[kind] = lengths, (at + 1) % SAMPLES
        if len(self._lengths) > self._kinds:
            self._lengths.popitem(last=False)

    def expected(self, kind: Kind, max_tokens: int) -> int:
        """Output tokens to hold for one choice: the tenant's own 90th percentile, and no more than `max_tokens`."""
        lengths, _ = self._lengths.get(kind, (array("I"), 0))
        if len(lengths) < ENOUGH:
            return min(max_tokens, FIRST_TOKENS)
        usual = sorted(lengths)[math.ceil(QUANTILE * len(lengths)) - 1]
        return max(1, min(max_tokens, usual))
