"""What an answer says of its log-probabilities, against what an engine says."""

from __future__ import annotations

from typing import Any

import pytest

from serve.words import TokenLogprob


def assert_scores(served: dict[str, Any], scores: Any) -> None:
    """The served object says what these TokenLogprobs say, within 1e-6."""
    expected: list[TokenLogprob] = list(scores)
    assert len(expected) == len(served["token_logprobs"]) > 4
    for value, top, score in zip(served["token_logprobs"], served["top_logprobs"], expected, strict=True):
        assert value == (None if score.logprob is None else pytest.approx(score.logprob, abs=1e-6))
        if score.logprob is not None:
            likeliest = sorted({*dict(score.top).values(), score.logprob})
            assert sorted(top.values()) == pytest.approx(likeliest, abs=1e-6)
