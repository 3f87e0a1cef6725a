"""GPTBigCode for vLLM, as a plugin: what vLLM's general Transformers backend does wrong for StarCoder.

vLLM loads the entry point `vllm.general_plugins` in each of its processes, several times in some.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import entry_points

ARCHITECTURE = "GPTBigCodeForCausalLM"
MODEL_CLASS = "serve.starcoder.model:GPTBigCodeForCausalLM"
PLUGIN = "starserve_gpt_bigcode"  # its name in pyproject.toml, and in VLLM_PLUGINS


def plugin_is_allowed(environment: Mapping[str, str]) -> bool:
    """Whether vLLM's processes will load this plugin: it is installed, and VLLM_PLUGINS, if set, names it."""
    installed = any(point.name == PLUGIN for point in entry_points(group="vllm.general_plugins"))
    allowed = environment.get("VLLM_PLUGINS")
    return installed and (allowed is None or PLUGIN in allowed.split(","))


def register() -> None:
    """Tell vLLM which class builds GPTBigCode. The class is imported when a model needs it, so CUDA is not touched."""
    from vllm import ModelRegistry

    ModelRegistry.register_model(ARCHITECTURE, MODEL_CLASS)
