"""One wide model for all tests of this folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.starcoder.models import write_model


@pytest.fixture(scope="session")
def wide_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("wide-starcoder"))
