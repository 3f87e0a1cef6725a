from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.support.door import Door


@pytest.fixture
async def door(words_folder: Path) -> AsyncIterator[Door]:
    opened = Door(words_folder)
    async with opened.client:
        yield opened
