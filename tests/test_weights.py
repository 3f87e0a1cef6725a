"""Prepared models: whole or not at all, and checked at load."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from serve.settings import Model, SettingsError, parse
from serve.weights import is_prepared, prepare, prepared_folder, verify
from tests.stack import tiny_model


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
    [({"package": "not-installed-here"}, "is not installed"), ({"repository": "a/b"}, "does not download")],
)
def test_a_source_that_cannot_be_prepared_is_named(source: dict[str, str], sentence: str, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=sentence):
        prepare(model_of(tmp_path, source=source), tmp_path, quiet)
