"""Prepared models: whole or not at all, and checked at load."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from serve.model_settings import Model
from serve.settings import SettingsError, parse
from serve.weights.manifest import is_prepared, prepared_folder, verify
from serve.weights.prepare import prepare
from tests.support.stack import tiny_model


def model_of(folder: Path, **changes: Any) -> Model:
    return parse({"models": [{**tiny_model(folder), **changes}]}).models[0]


def quiet(_: str) -> None:
    return None


def test_a_folder_is_prepared_once_and_verified(starcoder_folder: Path, tmp_path: Path) -> None:
    model, told = model_of(starcoder_folder), list[str]()
    folder = prepare(model, tmp_path, told.append)
    assert "copying model.safetensors" in told
    verify(folder)
    assert is_prepared(model, tmp_path)
    told.clear()
    assert prepare(model, tmp_path, told.append) == folder
    assert told == []


def test_a_changed_file_a_missing_file_and_an_added_file_are_named(starcoder_folder: Path, tmp_path: Path) -> None:
    folder = prepare(model_of(starcoder_folder), tmp_path, quiet)
    config = (folder / "config.json").read_text()
    (folder / "config.json").write_text(config + " ")
    with pytest.raises(SettingsError, match=r"config\.json differs"):
        verify(folder)
    (folder / "config.json").write_text(config)
    (folder / "pytorch_model.bin").write_bytes(b"pickle")
    with pytest.raises(SettingsError, match=r"pytorch_model\.bin is not in the manifest"):
        verify(folder)
    (folder / "pytorch_model.bin").unlink()
    (folder / "model.safetensors").unlink()
    with pytest.raises(SettingsError, match=r"model\.safetensors differs"):
        verify(folder)


def test_a_folder_with_pickled_weights_only_is_refused_and_leaves_nothing(words_folder: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (source / name).write_bytes((words_folder / name).read_bytes())
    (source / "pytorch_model.bin").write_bytes(b"pickle")
    with pytest.raises(SettingsError, match="safetensors"):
        prepare(model_of(source), tmp_path / "cache", quiet)
    assert list((tmp_path / "cache" / "models").iterdir()) == []


def test_code_beside_the_weights_is_not_copied(starcoder_folder: Path, tmp_path: Path) -> None:
    (starcoder_folder / "modeling_evil.py").write_text("raise SystemExit")
    folder = prepare(model_of(starcoder_folder), tmp_path, quiet)
    (starcoder_folder / "modeling_evil.py").unlink()
    assert list(folder.glob("*.py")) == []


def test_a_changed_source_has_a_folder_of_its_own(tmp_path: Path) -> None:
    assert prepared_folder(model_of(tmp_path / "a"), tmp_path) != prepared_folder(model_of(tmp_path / "b"), tmp_path)


@pytest.mark.parametrize(
    ("source", "sentence"),
    [
        ({"package": "not-installed-here"}, r"source\.package: .* is not installed"),
        ({"repository": "a/b"}, r"source\.revision: required"),
        ({"folder": "/nowhere/at/all"}, r"source\.folder: /nowhere/at/all is no folder"),
    ],
)
def test_a_source_that_cannot_be_prepared_is_named(source: dict[str, str], sentence: str, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=sentence):
        prepare(model_of(tmp_path, source=source), tmp_path, quiet)


def test_what_a_killed_prepare_left_is_removed_and_a_folder_without_manifest_is_made_anew(
    starcoder_folder: Path, tmp_path: Path
) -> None:
    model = model_of(starcoder_folder)
    target = prepared_folder(model, tmp_path)
    for left in (target, target.with_name(f".preparing-{target.name}")):
        left.mkdir(parents=True)
        (left / "model.safetensors").write_bytes(b"half")
    verify(prepare(model, tmp_path, quiet))
    assert list(target.parent.iterdir()) == [target]


def test_two_prepares_at_once_take_turns(starcoder_folder: Path, tmp_path: Path) -> None:
    config = tmp_path / "c.yaml"
    config.write_text(json.dumps({"models": [tiny_model(starcoder_folder)]}))
    command = [sys.executable, "-m", "serve", "model", "prepare", str(config)]
    environment = {**os.environ, "STARSERVE_CACHE": str(tmp_path / "cache"), "PYTHONUNBUFFERED": "1"}
    (tmp_path / "cache").mkdir()
    with (tmp_path / "cache" / "prepare.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        waiting = [subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) for _ in range(2)]
        for process in waiting:
            assert process.stdout is not None
            assert "another process is preparing a model in this cache" in process.stdout.readline()
    said = [process.communicate(timeout=60)[0] for process in waiting]
    assert [process.returncode for process in waiting] == [0, 0]
    assert sorted("copying" in text for text in said) == [False, True]
    verify(prepared_folder(model_of(starcoder_folder), tmp_path / "cache"))


def test_a_cache_that_cannot_be_written_is_told(starcoder_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SettingsError, match=r"source: .*file.*: (Not a directory|File exists)"):
        prepare(model_of(starcoder_folder), tmp_path / "file" / "cache", quiet)
