"""A TCP proxy that delays every byte: a store that is slow and not dead."""

from __future__ import annotations

import asyncio
from types import TracebackType


class SlowProxy:
    """`async with SlowProxy(port) as proxy`: clients come to `proxy.port`, and wait `delay_s` for each answer."""

    def __init__(self, port: int) -> None:
        self._port, self.delay_s = port, 0.0
        self._serving = set[asyncio.Task[None]]()

    async def __aenter__(self) -> SlowProxy:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port: int = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.close()
        for task in self._serving:
            task.cancel()
        await asyncio.gather(*self._serving, return_exceptions=True)
        await self._server.wait_closed()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._serve(reader, writer))
        self._serving.add(task)
        task.add_done_callback(self._serving.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection("127.0.0.1", self._port)
        await asyncio.gather(self._pump(reader, back, 0), self._pump(there, writer, 1))

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, delays: int) -> None:
        try:
            while data := await reader.read(1 << 16):
                await asyncio.sleep(self.delay_s * delays)
                writer.write(data)
                await writer.drain()
        except OSError:
            pass
        finally:
            writer.close()
