"""Weights that lie as GGUF in an installed Python package, such as the embedded SmolLM2."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

from serve.settings import SettingsError
from serve.weights.child import Progress


def from_package(package: str, work: Path, progress: Progress) -> None:
    """Turn the GGUF file of an installed package into safetensors. Takes about 15 s for 135 M parameters."""
    gguf = next(gguf_files(package), None)
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


def positions_of(package: str) -> int | None:
    """How many tokens of context the model in a package was made for; None where its file does not say."""
    from gguf import GGUFReader

    file = next(gguf_files(package), None)
    if file is None:
        return None
    fields = GGUFReader(file).fields
    found = next((field for name, field in fields.items() if name.endswith(".context_length")), None)
    return int(found.contents()) if found else None


def gguf_files(package: str) -> Iterator[Path]:
    """Of an installed package."""
    try:
        listed = distribution(package).files or []
    except PackageNotFoundError:
        return
    yield from (Path(str(f.locate())) for f in listed if f.suffix == ".gguf")
