"""GPTBigCode for vLLM, as a plugin: what vLLM's general Transformers backend does wrong for StarCoder.

vLLM loads the entry point `vllm.general_plugins` in each of its processes, several times in some.
"""

from __future__ import annotations

ARCHITECTURE = "GPTBigCodeForCausalLM"
MODEL_CLASS = "serve.starcoder.model:GPTBigCodeForCausalLM"
PLUGIN = "starserve_gpt_bigcode"  # its name in pyproject.toml, and in VLLM_PLUGINS


def register() -> None:
    """Tell vLLM which class builds GPTBigCode. The class is imported when a model needs it, so CUDA is not touched."""
    from vllm import ModelRegistry

    ModelRegistry.register_model(ARCHITECTURE, MODEL_CLASS)
