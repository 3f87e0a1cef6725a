"""Jobs of tenants for the fair queue, and how to wait for it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from serve.words import Band, Job, Sampling, Secret, Share

_ids = iter(range(10**9))


def job(tenant: str, tokens: int = 4, weight: float = 1.0, band: Band = "standard", n: int = 1, prompt: int = 3) -> Job:
    sampling = Sampling(max_tokens=tokens, temperature=1.0, top_p=1.0, n=n)
    share = Share(tenant, weight, band)
    return Job(f"{tenant}-{next(_ids)}", tuple(range(300, 300 + prompt)), sampling, Secret("salt"), share=share)


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not true():  # noqa: ASYNC110 - what is looked at tells nobody
            await asyncio.sleep(0)


async def ended(*tasks: asyncio.Task[Any]) -> list[Any]:
    for task in tasks:
        task.cancel()
    return await asyncio.gather(*tasks, return_exceptions=True)
