"""The README, and the fenced blocks in it."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
README = (ROOT / "README.md").read_text()


def block(language: str, holding: str) -> str:
    """The one fenced block of a language that holds some words."""
    blocks = re.findall(r"^```(\w*)\n(.*?)^```", README, re.DOTALL | re.MULTILINE)
    (found,) = [text for name, text in blocks if name == language and holding in text]
    return str(found)
