"""One real engine in this process for all who ask it the same way."""

from __future__ import annotations

import warnings
from collections.abc import AsyncIterator
from pathlib import Path

import pytest_asyncio

from serve.engines.vllm import VllmEngine
from serve.settings import parse
from tests.support.stack import tiny_model


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def vllm_engine(starcoder_folder: Path) -> AsyncIterator[VllmEngine]:
    """The tiny StarCoder, eight at a time."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # vLLM's and torch's imports warn about themselves
        settings = parse({"models": [tiny_model(starcoder_folder, coalesce_ms=200)]})
        engine = VllmEngine(settings.models[0], starcoder_folder)
    yield engine
    engine.stop()
