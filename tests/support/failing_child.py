"""A measurement that fails, in a process in which a library has the last word."""

from __future__ import annotations

import atexit
import sys

if __name__ == "__main__":
    print("[1]", flush=True)
    atexit.register(print, "library: leaked 2 instances!\nSee https://example.org", file=sys.stderr)
    try:
        raise KeyError("the cause")
    except KeyError as e:
        raise ValueError("line-1: prompt has 4 tokens") from e
