"""Engine processes that start warm, on the CPU build.

One vLLM engine is three processes (replica, engine core, worker), and each would spend some 15 s of CPU on the
same imports, one after the other. A fork server imports once, while the replica imports too; engine core and
worker are then forked from it in no time. vLLM's own choice inside a Ray actor is `spawn`, because the actor has
threads; the fork server has none, and nothing in it has run a parallel region, which a fork would not survive.
"""

from __future__ import annotations

import gc
import multiprocessing
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import forkserver
from typing import Any


def begin_imports() -> None:
    """Start the fork server. Call it after the environment is set and before vLLM is imported here."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["serve.engines.preload"])
    forkserver.ensure_running()


@contextmanager
def without_collector() -> Iterator[None]:
    """Let imports run without passes of the garbage collector, which find nothing and cost a quarter of their time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def use_warm_processes() -> None:
    """Let vLLM (0.32) take its engine core from the fork server."""
    from vllm.v1.engine import utils

    def context() -> Any:
        return multiprocessing.get_context("forkserver")

    assert callable(utils.get_mp_context), "vLLM has changed: read this file again"
    utils.get_mp_context = context
