"""LoRA adapters as PEFT saves them: read and checked before an engine sees them. Pure reading, standard library.

An adapter fits when every one of its matrices belongs to a matrix of the base model, by name and by shape. vLLM itself
would leave out what it does not know with a line in its log, and answer as the base does.
"""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

from serve.model_settings import Adapter
from serve.settings import SettingsError

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
HIGHEST_RANK = 512  # vLLM 0.32's
_MATRIX = re.compile(r"base_model\.model\.(?P<module>.+)\.lora_(?P<half>[AB])\.weight")
_LONGEST_HEADER = 100 << 20  # bytes; the safetensors library's own bound
# Parts of PEFT's LoRA that vLLM does not compute; the neutral value of each.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "bias": ("none",), "use_dora": (False, None), "modules_to_save": (None, []), "rank_pattern": (None, {}),
    "alpha_pattern": (None, {}), "lora_bias": (False, None), "fan_in_fan_out": (False, None),
    "trainable_token_indices": (None, []), "target_parameters": (None, []), "layer_replication": (None, []),
}  # fmt: skip

Shapes = dict[str, list[int]]


def checked(adapter: Adapter, base: Path) -> int:
    """The adapter's rank. SettingsError that names the adapter and says why it does not fit the model in `base`."""
    try:
        return _rank(adapter, base)
    except (OSError, ValueError, KeyError, TypeError) as e:
        reason = str(e) if isinstance(e, SettingsError) else f"a file cannot be read ({type(e).__name__})"
        raise SettingsError(f"adapter {adapter.name}: {reason}") from None


def _rank(adapter: Adapter, base: Path) -> int:
    for name in (CONFIG, WEIGHTS):
        _inside(adapter.folder, name)
    found = sha256(adapter)
    if adapter.sha256 != found:
        raise SettingsError(f"sha256: the sum of {WEIGHTS} is {found}; write it there once you have reviewed the file")
    config = json.loads((adapter.folder / CONFIG).read_text(encoding="utf-8"))
    if not isinstance(config, dict):
        raise SettingsError(f"{CONFIG}: is no JSON object")
    rank = _configured_rank(config)
    known = {name: shape for file in sorted(base.glob("*.safetensors")) for name, shape in _shapes(file).items()}
    halves: dict[str, set[str]] = {}
    for name, shape in _shapes(adapter.folder / WEIGHTS).items():
        matrix = _MATRIX.fullmatch(name)
        if matrix is None:
            raise SettingsError(f"{WEIGHTS}: {name[:100]} is no matrix of a LoRA adapter")
        wanted = known.get(f"{matrix['module']}.weight")
        if wanted is None or len(wanted) != 2:
            raise SettingsError(f"{WEIGHTS}: the base model has no matrix {matrix['module'][:100]}")
        fits = [rank, wanted[1]] if matrix["half"] == "A" else [wanted[0], rank]
        if shape != fits:
            raise SettingsError(f"{WEIGHTS}: {name[:100]} has the shape {shape}; with rank {rank} it must be {fits}")
        halves.setdefault(matrix["module"], set()).add(matrix["half"])
    if not halves:
        raise SettingsError(f"{WEIGHTS}: holds no matrix")
    if lonely := [module for module, found in halves.items() if found != {"A", "B"}]:
        raise SettingsError(f"{WEIGHTS}: {lonely[0][:100]} has only one of its two matrices")
    return rank


def sha256(adapter: Adapter) -> str:
    with (adapter.folder / WEIGHTS).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _inside(folder: Path, name: str) -> None:
    """The file must be there, and no link may lead out of the folder."""
    if ".." in folder.parts:
        raise SettingsError("folder: a path with `..` is refused")
    if not (folder / name).is_file():
        raise SettingsError(f"folder: there is no file {name} in it")
    if not (folder / name).resolve().is_relative_to(folder.resolve()):
        raise SettingsError(f"folder: {name} is a link that leads out of it")


def _configured_rank(config: dict[str, Any]) -> int:
    if config.get("peft_type") != "LORA":
        raise SettingsError(f"{CONFIG}: peft_type must be LORA")
    for name, neutral in _NEUTRAL.items():
        if config.get(name, neutral[0]) not in neutral:
            raise SettingsError(f"{CONFIG}: {name} is not served; train without it, or merge the adapter")
    rank = config.get("r")
    if not isinstance(rank, int) or not 1 <= rank <= HIGHEST_RANK:
        raise SettingsError(f"{CONFIG}: r must be a rank of 1…{HIGHEST_RANK}")
    return rank


def _shapes(file: Path) -> Shapes:
    """Name to shape of each tensor, from the header: 8 bytes of length, then JSON."""
    with file.open("rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
        if length > _LONGEST_HEADER:
            raise SettingsError(f"{file.name}: is no safetensors file")
        header = json.loads(opened.read(length))
    if not isinstance(header, dict):
        raise SettingsError(f"{file.name}: is no safetensors file")
    return {name: tensor["shape"] for name, tensor in header.items() if name != "__metadata__"}
