"""The allow-list: which names of a source are taken, whoever has chosen those names."""

from __future__ import annotations

import pytest

from serve.settings import SettingsError
from serve.weights.wanted import choose

WORDS = ["config.json", "tokenizer.json", "tokenizer_config.json"]
SHARDS = [f"model-0000{n}-of-00002.safetensors" for n in (1, 2)]
PICKLES = [f"pytorch_model-0000{n}-of-00002.bin" for n in (1, 2)]
INDEX, PICKLE_INDEX = "model.safetensors.index.json", "pytorch_model.bin.index.json"


@pytest.mark.parametrize("name", [
    "../a.safetensors", "..\\a.safetensors", "sub/a.safetensors", "/a.safetensors", ".safetensors", "-a.safetensors",
    "a b.safetensors", "a.safetensors\n", "a.safetensors.py", "ä.safetensors", "a.bin", "../pytorch_model.bin",
    "modeling.py", "tokenizer.model", "pytorch_model.bin.py",
])  # fmt: skip
def test_a_name_that_leaves_the_folder_or_is_no_weight_is_never_taken(name: str) -> None:
    assert choose([*WORDS, name, "weights.safetensors"], True, "source.x").every == (*WORDS, "weights.safetensors")
    with pytest.raises(SettingsError, match=r"source\.x: there is no \*\.safetensors file"):
        choose([*WORDS, name], True, "source.x")


@pytest.mark.parametrize(
    ("names", "taken"),
    [
        (["model.safetensors", "other.safetensors", *PICKLES, PICKLE_INDEX], ["model.safetensors"]),
        ([*SHARDS, INDEX, "consolidated.safetensors", "pytorch_model.bin"], [INDEX, *SHARDS]),
        ([*PICKLES, PICKLE_INDEX, "optimizer.bin"], [PICKLE_INDEX, *PICKLES]),
        (["pytorch_model.bin", *PICKLES, PICKLE_INDEX], ["pytorch_model.bin"]),
    ],
)
def test_one_form_of_the_weights_is_taken_and_safetensors_win(names: list[str], taken: list[str]) -> None:
    wanted = choose([*reversed(names), *WORDS], True, "source.x")
    assert wanted.every == (*WORDS, *taken)
    assert all(name.endswith(".bin") for name in wanted.pickles)


@pytest.mark.parametrize("missing", ["config.json", "tokenizer.json", "tokenizer_config.json", SHARDS[1]])
def test_a_missing_file_is_named(missing: str) -> None:
    with pytest.raises(SettingsError, match=rf"^source\.x: {missing} is missing$"):
        choose({*WORDS, *SHARDS, INDEX} - {missing}, False, "source.x")
