"""Import what an engine core and a worker need. The fork server alone imports this file, before it forks either.

What was imported is kept away from the garbage collector, so that forked processes share it.
"""

from __future__ import annotations

import gc
from importlib import import_module

from serve.engines.warm import without_collector

with without_collector():
    for name in ("vllm.v1.engine.core", "vllm.v1.executor.multiproc_executor", "vllm.v1.worker.cpu_worker"):
        import_module(name)
    from serve.engines.polling import poll

    poll()
    gc.freeze()
