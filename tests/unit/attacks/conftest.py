from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.support.town import Town


@pytest.fixture
async def town(words_folder: Path, tmp_path: Path) -> AsyncIterator[Town]:
    made = Town(words_folder, tmp_path)
    yield made
    await made.close()
