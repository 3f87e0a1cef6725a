"""The body of a request: whether it is wanted at all, read within its bounds, decoded."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from starlette.requests import Request

from serve.errors import BadRequest, BodyTooLarge, BodyTooSlow
from serve.wire.codings import codings_of, decoded
from serve.wire.protocol import CONTINUE


async def read_body(request: Request, most_bytes: int, timeout_s: float, run: Callable[..., Awaitable[bytes]]) -> bytes:
    """Read and decode it. What the headers alone forbid is refused before the client is told to send it.

    `most_bytes` bounds what comes and what it decodes to; `run` calls a function in a thread, since a body of a few
    hundred bytes may decode to all of that.
    """
    codings = codings_of(request.headers.getlist("content-encoding"))
    transfer = request.headers.get("transfer-encoding", "chunked").strip().lower()
    if transfer != "chunked":
        raise BadRequest("Transfer-Encoding: only chunked; name a compression in Content-Encoding", "Transfer-Encoding")
    length = request.headers.get("content-length", "0")
    too_large = BodyTooLarge(f"the body is larger than {most_bytes} bytes")
    if length.isascii() and length.isdigit() and (len(length) > 18 or int(length) > most_bytes):
        raise too_large
    if go_on := request.scope.get("extensions", {}).get(CONTINUE):
        go_on()
    body = bytearray()
    try:
        async with asyncio.timeout(timeout_s):
            async for chunk in request.stream():
                body += chunk
                if len(body) > most_bytes:
                    raise too_large
    except TimeoutError:
        raise BodyTooSlow(f"the body did not come within {timeout_s:g} s") from None
    return await run(decoded, bytes(body), codings, most_bytes) if codings else bytes(body)
