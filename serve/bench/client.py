"""Sends requests and reads their streams, with aiohttp. One `Client` per measuring process."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import aiohttp

from serve.bench.stream import Reading, Sample


@dataclass(frozen=True, slots=True)
class Request:
    """What one request sends. The key is unprintable by the type of `headers`' owner, the target."""

    path: str
    body: Mapping[str, Any]


class Client:
    """Connections to one server, as many as there are requests at once."""

    def __init__(self, address: str, key: str = "", timeout_s: float = 600) -> None:
        self._address, self._key, self._timeout_s = address.rstrip("/"), key, timeout_s

    async def __aenter__(self) -> Client:
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, force_close=False),
            timeout=aiohttp.ClientTimeout(total=self._timeout_s),
            headers={"Authorization": f"Bearer {self._key}"} if self._key else {},
            auto_decompress=False,
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._session.close()

    async def send(self, request: Request, sample: Sample) -> None:
        """One request, streamed and with usage. Times are those of `time.perf_counter`. It raises nothing.

        The sample shows at every moment what came so far. Cancelled, it is `cut`.
        """
        reading = Reading(sample, int(request.body.get("n") or 1))
        options = {"include_usage": True, **request.body.get("stream_options", {})}
        body = {**request.body, "stream": True, "stream_options": options}
        sample.sent_s = time.perf_counter()
        try:
            async with self._session.post(self._address + request.path, json=body) as answer:
                sample.status = answer.status
                if answer.status != 200:
                    reading.refused(answer.status, await answer.read())
                else:
                    async for data in answer.content.iter_any():
                        reading.feed(data, time.perf_counter())
        except TimeoutError:
            reading.failed("timeout")
        except aiohttp.ClientConnectorError:
            reading.failed("unreachable")
        except (aiohttp.ClientError, OSError):
            reading.failed("truncated" if sample.status else "unreachable")
        except asyncio.CancelledError:
            reading.failed("cut")
            raise
        finally:
            reading.close(time.perf_counter())
