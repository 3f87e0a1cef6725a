"""The roofline, against numbers that were computed apart."""

from __future__ import annotations

import pytest

from serve.bench.shapes import SHAPES
from serve.plan import Machine, Shape, output_tokens_s, step_s

STARCODER = Shape.of({**SHAPES["starcoder"], "vocab_size": 49152})
A100, H100, H200 = Machine(2.039e12, 250e12), Machine(3.35e12, 790e12), Machine(4.8e12, 790e12)


def test_one_key_value_head_makes_a_small_cache() -> None:
    assert STARCODER.kv_bytes_per_token == 20_480
    assert STARCODER.step_bytes / 1e9 == pytest.approx(30.93, abs=0.01)


@pytest.mark.parametrize(
    ("machine", "ranks", "batch", "tokens_s"),
    [
        (A100, 1, 1, 66), (A100, 1, 64, 4044), (A100, 8, 256, 38836), (H100, 1, 256, 22021), (H100, 4, 128, 41165),
        (H200, 1, 1, 155), (H200, 1, 256, 22978), (H200, 2, 64, 18279), (H200, 8, 256, 107958),
    ],
)  # fmt: skip
def test_the_ceiling_of_decoding(machine: Machine, ranks: int, batch: int, tokens_s: int) -> None:
    assert batch / step_s(STARCODER, machine, batch, 1024, ranks) == pytest.approx(tokens_s, abs=1)


@pytest.mark.parametrize(
    ("machine", "prompt", "output", "tokens_s"),
    [(A100, 128, 128, 4081), (H100, 128, 128, 12894), (H200, 128, 256, 17079), (H200, 1024, 256, 5089)],
)
def test_the_ceiling_of_whole_requests(machine: Machine, prompt: int, output: int, tokens_s: int) -> None:
    assert output_tokens_s(STARCODER, machine, prompt, output, 256) == pytest.approx(tokens_s, abs=1)
