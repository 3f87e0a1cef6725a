"""Conversion of pickled weights to safetensors, in a process of its own (`python -m serve.weights.pickles`).

Of its own, because a pickle is a program: torch's reader runs only the few words that tensors need, and behind it
there is no token, no key and no memory of ours. Every name in a pickle is kept with its very bytes; two names for
one tensor (a tied head) become two tensors, since safetensors knows no sharing.
"""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file

from serve.settings import SettingsError
from serve.weights import child, disk
from serve.weights.child import Progress

FIELD = "source.convert_pickle"
_INDEX = "pytorch_model.bin.index.json"


def convert(source: Path, target: Path, names: Sequence[str], progress: Progress) -> None:
    """Convert files of `source` one after the other, so that memory holds one. Raises SettingsError."""
    announced = _announced(source / _INDEX) if len(names) > 1 else {}
    homes: dict[str, str] = {}
    total_bytes = 0
    for number, name in enumerate(names, 1):
        size_mb = (source / name).stat().st_size / disk.MEGABYTE
        progress(f"converting file {number} of {len(names)}, {name}, {size_mb:,.1f} MB")
        converted = f"{name.removeprefix('pytorch_').removesuffix('.bin')}.safetensors"
        made, nbytes = _convert(source / name, target / converted)
        if twice := made & set(homes):
            raise SettingsError(f"{FIELD}: {min(twice)!r} is in {name} and in a file before it")
        if missing := {tensor for tensor, home in announced.items() if home == name} - made:
            raise SettingsError(f"{FIELD}: {min(missing)!r} is not in {name}, where {_INDEX} says that it is")
        homes |= dict.fromkeys(made, converted)
        total_bytes += nbytes
    if nowhere := set(announced) - set(homes):
        raise SettingsError(f"{FIELD}: {_INDEX} tells of {min(nowhere)!r}, which is in none of its files")
    if len(names) > 1:
        index = {"metadata": {"total_size": total_bytes}, "weight_map": dict(sorted(homes.items()))}
        (target / "model.safetensors.index.json").write_text(json.dumps(index, indent=2))
    progress(f"converted {len(homes)} tensors, {total_bytes / disk.MEGABYTE:,.1f} MB; this took at most "
             f"{_peak_bytes() / disk.MEGABYTE:,.0f} MB of memory")  # fmt: skip


def _convert(path: Path, converted: Path) -> tuple[set[str], int]:
    """Convert one file. Returns the tensors' names and their bytes; the tensors themselves end here."""
    tensors = _independent(_load(path), path.name)
    save_file(tensors, converted, {"format": "pt"})
    return set(tensors), sum(tensor.nbytes for tensor in tensors.values())


def _load(path: Path) -> object:
    try:
        # A file of torch before 1.6 is no zip archive, and only those can be mapped instead of read.
        return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except MemoryError:
        raise SettingsError(f"{FIELD}: there is too little memory to read {path.name}") from None
    except Exception as e:
        # Torch's own text advises to switch the guard off; only the name of what was asked for is passed on.
        asked = re.search(r"GLOBAL ([\w.]+)", str(e))
        if asked:
            raise SettingsError(f"{FIELD}: {path.name} asks for {asked[1]}, which is no part of a tensor; nothing of "
                                "it was run, and it is not converted") from None  # fmt: skip
        raise SettingsError(f"{FIELD}: {path.name} is no file of weights, or is damaged ({type(e).__name__}); nothing "
                            "of it was run") from None  # fmt: skip


def _independent(loaded: object, name: str) -> dict[str, torch.Tensor]:
    """Named tensors that share no memory and lie without gaps, as safetensors wants them. Nothing is left out."""
    if not isinstance(loaded, dict) or not loaded:
        raise SettingsError(f"{FIELD}: {name} holds a {type(loaded).__name__}, not named tensors")
    tensors, storages = dict[str, torch.Tensor](), set[int]()
    for key, value in loaded.items():
        if not isinstance(key, str) or not _is_plain(value):
            raise SettingsError(f"{FIELD}: {key!r} in {name} is a {type(value).__name__} that safetensors cannot hold")
        tensor = value.detach().contiguous()
        storage = tensor.untyped_storage().data_ptr()
        tensors[key] = tensor.clone() if storage in storages else tensor
        storages |= {storage} - {0}
    return tensors


def _is_plain(value: object) -> bool:
    if not isinstance(value, torch.Tensor) or type(value) not in (torch.Tensor, torch.nn.Parameter):
        return False
    return value.layout == torch.strided and not (value.is_meta or value.is_quantized or value.is_complex())


def _announced(index: Path) -> dict[str, str]:
    """The shard of every tensor, as the index tells it."""
    try:
        announced = json.loads(index.read_text())["weight_map"]
        return {str(tensor): str(shard) for tensor, shard in announced.items()}
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        raise SettingsError(f"{FIELD}: {index.name} is no index of shards") from None


def _peak_bytes() -> int:
    """The most memory that this process has held, mapped files included."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024


def main(arguments: Sequence[str]) -> None:
    source, target, *names = arguments
    convert(Path(source), Path(target), names, print)


if __name__ == "__main__":
    child.begin(main)
