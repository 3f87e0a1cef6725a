"""Can this processor multiply 8-bit integers exactly? Standard library only.

Without the instructions named here, oneDNN multiplies them with intermediate sums of 16 bits that saturate (its guide,
"Nuances of int8 Computations"). On an AMD EPYC with AVX2 alone, vLLM's W8A8 layers answered with other tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

_EXACT = {"avx512_vnni", "avx_vnni", "amx_int8"}  # as Linux names them
CPUINFO = Path("/proc/cpuinfo")


def exact(cpuinfo: str) -> bool:
    """`cpuinfo`: the text of /proc/cpuinfo."""
    flags = next((line for line in cpuinfo.splitlines() if line.startswith("flags")), "")
    return not _EXACT.isdisjoint(flags.split())


def multiplies_them(config: Mapping[str, Any]) -> bool:
    """Whether a model's config.json asks for weights and activations in 8-bit integers (compressed-tensors)."""
    groups = (config.get("quantization_config") or {}).get("config_groups") or {}
    inputs = [group.get("input_activations") or {} for group in groups.values()]
    return any(i.get("num_bits") == 8 and i.get("type") == "int" for i in inputs)
