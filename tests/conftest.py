"""Shared by all tests: a tiny StarCoder with random weights, and a folder of its tokenizer."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.tiny_starcoder import CONTEXT, write_tokenizer

if TYPE_CHECKING:
    from tests.support.books import Books, Open
    from tests.support.limit_stores import Clock

pytest_plugins = ["tests.support.hub_fixtures", "tests.support.tiers"]

os.environ["HF_HUB_OFFLINE"] = "1"
# Tests share two cores: a second thread of torch would only spin until the first one has had its turn.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.pop("COLUMNS", None)  # pytest-xdist gives its workers a width; commands must not see it
# Where vLLM puts the sockets to the cores that tests start in this process; it leaves them behind.
SOCKETS = tempfile.TemporaryDirectory(prefix="tests-")
os.environ["VLLM_RPC_BASE_PATH"] = SOCKETS.name


def pytest_unconfigure() -> None:
    SOCKETS.cleanup()


@pytest.fixture(scope="session")
def words_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tokenizer and config of the tiny StarCoder, without weights: enough for a router."""
    folder = tmp_path_factory.mktemp("words")
    size = write_tokenizer(folder)
    (folder / "config.json").write_text(json.dumps({"vocab_size": size}))
    return folder


@pytest.fixture(scope="session")
def starcoder_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random GPTBigCode in float32, with seed 0."""
    import torch
    from transformers import GPTBigCodeConfig, GPTBigCodeForCausalLM

    folder = tmp_path_factory.mktemp("tiny-starcoder")
    size = write_tokenizer(folder)
    torch.manual_seed(0)
    config = GPTBigCodeConfig(
        vocab_size=size, n_positions=CONTEXT, n_embd=128, n_layer=2, n_head=4, multi_query=True,
        bos_token_id=0, eos_token_id=0, initializer_range=0.4,
    )  # fmt: skip
    model = GPTBigCodeForCausalLM(config).to(torch.float32)
    with torch.no_grad():
        model.transformer.wte.weight[0] = 0  # the end token: an answer goes on until max_tokens
    model.save_pretrained(folder)
    return folder


@pytest.fixture
def opened(words_folder: Path, tmp_path: Path) -> Iterator[Open]:
    """Opens doors with accounts; one after the other on the same ledger, as a router that starts again does."""
    from tests.support.books import PRICED, Books

    made: list[Books] = []

    def open_books(settings: Mapping[str, Any] = PRICED, **door: Any) -> Books:
        made.append(Books(words_folder, tmp_path, settings, **door))
        return made[-1]

    yield open_books
    for books in made:
        books.close()


@pytest.fixture
def clock() -> Clock:
    """Moved by the test alone."""
    from tests.support.limit_stores import Clock

    return Clock()
