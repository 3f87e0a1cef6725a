"""Where prepared models lie, and the manifest of sha256 sums that is checked at each load."""

from __future__ import annotations

import hashlib
import json
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from serve.model_settings import Model
from serve.settings import SettingsError

MANIFEST = "starserve-manifest.json"


def prepared_folder(model: Model, cache: Path) -> Path:
    """Where `prepare` puts a model. The name follows from the source, so a changed source is prepared anew."""
    identity = json.dumps({**model.source.model_dump(mode="json"), "version": _package_version(model)}, sort_keys=True)
    return cache / "models" / f"{model.name.replace('/', '--')}-{hashlib.sha256(identity.encode()).hexdigest()[:12]}"


def is_prepared(model: Model, cache: Path) -> bool:
    return (prepared_folder(model, cache) / MANIFEST).exists()


def write(model: Model, folder: Path) -> None:
    """Record what the folder was made from and the sum of every file in it. Reads all of it."""
    came_from = model.source.model_dump(mode="json", exclude_none=True)
    sums = {p.name: _sha256(p) for p in sorted(folder.iterdir())}
    manifest = {"model": model.name, "source": came_from, "sha256": sums}
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1))


def verify(folder: Path) -> None:
    """Compare every file with the manifest; raises SettingsError that names the first wrong one."""
    try:
        sums: dict[str, str] = json.loads((folder / MANIFEST).read_text())["sha256"]
    except OSError:
        raise SettingsError(f"model {folder.name} is not prepared: run `starserve model prepare`") from None
    for name, wanted in sums.items():
        if not (folder / name).is_file() or _sha256(folder / name) != wanted:
            raise SettingsError(f"model {folder.name}: {name} differs from the manifest; remove the folder and prepare")
    if extra := {p.name for p in folder.iterdir()} - {*sums, MANIFEST}:
        raise SettingsError(f"model {folder.name}: {min(extra)} is not in the manifest; remove the folder and prepare")


def _package_version(model: Model) -> str:
    try:
        return distribution(model.source.package).version if model.source.package else ""
    except PackageNotFoundError:
        return ""


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
