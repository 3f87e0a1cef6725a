"""Content codings of request bodies (RFC 9110, 8.4): decoded within a bound, or refused by name."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence

import zstandard

from serve.errors import BadRequest, BodyTooLarge, UnsupportedCoding

ACCEPTED = ("gzip", "deflate", "zstd")
MOST_CODINGS = 2  # one over the other
MOST_MEMBERS = 64  # gzip members or zstd frames in one body; each copies what is left of it
MOST_WINDOW_BYTES = 8 << 20  # what a zstd frame may make us allocate (RFC 9659)
_GZIP, _ZLIB, _RAW = 31, 15, -15  # zlib's names for the three: window bits


def codings_of(headers: Iterable[str]) -> tuple[str, ...]:
    """The codings that the values of Content-Encoding name, in the order in which they were applied."""
    named = [word.strip().lower() for value in headers for word in value.split(",")]
    codings = tuple("gzip" if name == "x-gzip" else name for name in named if name not in ("", "identity"))
    for name in codings:
        if name not in ACCEPTED:
            raise _unsupported(f"Content-Encoding: {name[:40]} is not known here; send {', '.join(ACCEPTED)}, or none")
    if len(codings) > MOST_CODINGS:
        raise _unsupported(f"Content-Encoding: at most {MOST_CODINGS} codings, one over the other")
    return codings


def decoded(body: bytes, codings: Sequence[str], most_bytes: int) -> bytes:
    """The body as it was before `codings`. What decodes to more than `most_bytes` is given up there, in any layer."""
    for coding in reversed(codings):
        pieces, size = list[bytes](), 0
        try:
            # An eighth of the bound at a time: each step copies what is left of the body.
            for piece in _DECODERS[coding](body, most_bytes // 8 + 1):
                pieces.append(piece)
                size += len(piece)
                if size > most_bytes:
                    raise BodyTooLarge(f"the body is larger than {most_bytes} bytes once it is decoded")
        except (_Broken, zlib.error, zstandard.ZstdError):
            message = f"Content-Encoding: the body is no valid {coding} stream"
            raise BadRequest(message, "Content-Encoding") from None
        body = b"".join(pieces)
    return body


class _Broken(Exception):
    """It ends in its middle, or goes on after its end."""


def _gunzipped(body: bytes, step: int) -> Iterator[bytes]:
    for _ in range(MOST_MEMBERS):
        member = zlib.decompressobj(_GZIP)
        yield from _inflated(member, body, step)
        body = member.unused_data
        if not body:
            return
    raise _Broken


def _undeflated(body: bytes, step: int) -> Iterator[bytes]:
    """`deflate` is the zlib format; some clients send a bare deflate stream, and servers read both."""
    wrapped = len(body) > 1 and body[0] & 0x0F == 8 and (body[0] << 8 | body[1]) % 31 == 0
    stream = zlib.decompressobj(_ZLIB if wrapped else _RAW)
    yield from _inflated(stream, body, step)
    if stream.unused_data:
        raise _Broken


def _inflated(stream: zlib._Decompress, body: bytes, step: int) -> Iterator[bytes]:
    while not stream.eof:
        piece = stream.decompress(body, step)
        body = stream.unconsumed_tail
        yield piece
        if len(piece) < step and not stream.eof:
            raise _Broken


def _unzstd(body: bytes, step: int) -> Iterator[bytes]:
    decompressor = zstandard.ZstdDecompressor(max_window_size=MOST_WINDOW_BYTES)
    with decompressor.stream_reader(body, read_across_frames=True) as reader:
        while piece := reader.read(step):
            yield piece
    # The reader can be stopped at the bound, but does not tell an end from a middle. So what is known to be small
    # enough is read again by what tells.
    for _ in range(MOST_MEMBERS):
        frame = decompressor.decompressobj()
        frame.decompress(body)
        body = frame.unused_data
        if frame.eof and not body:
            return
        if not frame.eof:
            break
    raise _Broken


_DECODERS: dict[str, Callable[[bytes, int], Iterator[bytes]]] = {
    "gzip": _gunzipped,
    "deflate": _undeflated,
    "zstd": _unzstd,
}


def _unsupported(message: str) -> UnsupportedCoding:
    error = UnsupportedCoding(message, "Content-Encoding")
    error.headers = {"Accept-Encoding": ", ".join(ACCEPTED)}
    return error
