"""Settings of models in a hub, and the files of a model that are not weights."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from serve.model_settings import Model
from serve.settings import parse
from tests.support.hub import COMMIT, REPOSITORY
from tests.support.stack import tiny_model


def model_of(source: dict[str, Any]) -> Model:
    return parse({"models": [{**tiny_model(Path("unused")), "source": source}]}).models[0]


def in_hub(**changes: Any) -> Model:
    return model_of({"repository": REPOSITORY, "revision": COMMIT, **changes})


def words_of(folder: Path) -> dict[str, bytes]:
    """Everything of a model but its weights."""
    return {p.name: p.read_bytes() for p in folder.iterdir() if p.suffix in (".json", ".jinja")}


def copy_words(source: Path, target: Path) -> None:
    for path in source.iterdir():
        if path.suffix in (".json", ".jinja") and "index" not in path.name:
            shutil.copyfile(path, target / path.name)
