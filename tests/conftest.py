"""Shared by all tests: a tiny StarCoder with random weights, and a folder of its tokenizer."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tests.books import Books, Open

os.environ["HF_HUB_OFFLINE"] = "1"
# Where vLLM puts the sockets to the cores that tests start in this process; it leaves them behind.
SOCKETS = tempfile.TemporaryDirectory(prefix="tests-")
os.environ["VLLM_RPC_BASE_PATH"] = SOCKETS.name


def pytest_unconfigure() -> None:
    SOCKETS.cleanup()


CONTROL = [
    "<|endoftext|>", "<fim_prefix>", "<fim_middle>", "<fim_suffix>", "<fim_pad>", "<filename>", "<gh_stars>",
    "<issue_start>", "<issue_comment>", "<issue_closed>", "<jupyter_start>", "<jupyter_text>",
    "<jupyter_code>", "<jupyter_output>", "<empty_output>", "<commit_before>", "<commit_msg>",
    "<commit_after>", "<reponame>",
]  # fmt: skip
CHATML = (
    "{% for m in messages %}{{ '<reponame>' + m['role'] + '\\n' + m['content'] + '<|endoftext|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<reponame>assistant\\n' }}{% endif %}"
)
CONTEXT = 2048


def write_tokenizer(folder: Path) -> int:
    """A byte-level BPE of our own with StarCoder's 19 control tokens. Returns the vocabulary's size."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=CONTROL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    # Of its own file: with another text it were another tokenizer, and the random model would answer differently.
    corpus = (Path(__file__).parent / "corpus.txt").read_text()
    words = f"{corpus}### Instruction:\n### Response:\n### Input:\nBelow is an instruction"
    tokenizer.train_from_iterator([words], trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    described = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": CONTROL[0],
        "bos_token": CONTROL[0],
        "model_max_length": CONTEXT,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(described))
    (folder / "chat_template.jinja").write_text(CHATML)
    return int(tokenizer.get_vocab_size())


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
    from tests.books import PRICED, Books

    made: list[Books] = []

    def open_books(settings: Mapping[str, Any] = PRICED, **rows: Any) -> Books:
        made.append(Books(words_folder, tmp_path, settings, **rows))
        return made[-1]

    yield open_books
    for books in made:
        books.close()
