"""Prepared models: a folder of safetensors, tokenizer and a manifest of sha256 sums that is checked at load.

No code from a model's folder ever runs, and pickles (`.bin`) are refused.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

from serve.settings import Model, SettingsError

MANIFEST = "starserve-manifest.json"
Progress = Callable[[str], None]
_WANTED = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja",
           "special_tokens_map.json", "model.safetensors.index.json", "LICENSE", "README.md")  # fmt: skip


def prepared_folder(model: Model, cache: Path) -> Path:
    """Where `prepare` puts a model. The name follows from the source, so a changed source is prepared anew."""
    identity = json.dumps({**model.source.model_dump(mode="json"), "version": _package_version(model)}, sort_keys=True)
    return cache / "models" / f"{model.name.replace('/', '--')}-{hashlib.sha256(identity.encode()).hexdigest()[:12]}"


def is_prepared(model: Model, cache: Path) -> bool:
    return (prepared_folder(model, cache) / MANIFEST).exists()


def prepare(model: Model, cache: Path, progress: Progress) -> Path:
    """Make the model's folder, once. It appears whole or not at all: work is done beside it and renamed."""
    target = prepared_folder(model, cache)
    if (target / MANIFEST).exists():
        return target
    target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    work = Path(tempfile.mkdtemp(prefix=".preparing-", dir=target.parent))
    try:
        if model.source.package:
            _from_package(model.source.package, work, progress)
        elif model.source.folder:
            _from_folder(model.source.folder, work, progress)
        else:
            raise SettingsError("source.repository: download it to a folder and name that as source.folder; "
                                "this version does not download")  # fmt: skip
        progress("writing the manifest of sha256 sums")
        sums = {p.name: _sha256(p) for p in sorted(work.iterdir())}
        (work / MANIFEST).write_text(json.dumps({"model": model.name, "sha256": sums}, indent=1))
        os.replace(work, target)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return target


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


def _from_folder(source: Path, work: Path, progress: Progress) -> None:
    names = [n for n in _WANTED if (source / n).is_file()] + sorted(p.name for p in source.glob("*.safetensors"))
    for needed in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        if needed not in names:
            raise SettingsError(f"source.folder: {needed} is missing")
    if not any(n.endswith(".safetensors") for n in names):
        raise SettingsError("source.folder: there is no *.safetensors file (pickled .bin weights are not loaded)")
    for name in names:
        progress(f"copying {name}")
        shutil.copyfile(source / name, work / name)


def _from_package(package: str, work: Path, progress: Progress) -> None:
    """Turn the GGUF file of an installed package into safetensors. Takes about 15 s for 135 M parameters."""
    gguf = next(_gguf_files(package), None)
    if gguf is None:
        raise SettingsError(f"source.package: {package} is not installed, or carries no .gguf file")
    progress("loading torch and transformers")
    # Imported here: only this act needs torch, and a router process must never load it.
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    progress(f"converting {gguf.name} to safetensors (once)")
    place: dict[str, Any] = {"gguf_file": gguf.name, "local_files_only": True}
    AutoTokenizer.from_pretrained(gguf.parent, **place).save_pretrained(work)
    quantization = GgufConfig(dequantize=True, gguf_file=gguf.name)
    loaded = AutoModelForCausalLM.from_pretrained(gguf.parent, quantization_config=quantization, **place)
    loaded.save_pretrained(work)


def _gguf_files(package: str) -> Iterator[Path]:
    try:
        listed = distribution(package).files or []
    except PackageNotFoundError:
        return
    yield from (Path(str(f.locate())) for f in listed if f.suffix == ".gguf")


def _package_version(model: Model) -> str:
    try:
        return distribution(model.source.package).version if model.source.package else ""
    except PackageNotFoundError:
        return ""


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
