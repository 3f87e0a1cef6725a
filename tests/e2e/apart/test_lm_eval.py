"""lm-evaluation-harness: a log-likelihood task gives the same numbers through the whole stack as in process."""

from __future__ import annotations

import json
import os
import subprocess
import warnings
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
import yaml

from serve.engines.vllm import VllmEngine
from serve.settings import embedded_config, parse
from serve.weights.manifest import prepared_folder
from serve.words import Job, Sampling, Secret
from tests.support.clients.environments import HERE, python_of
from tests.support.stack import Stack

pytestmark = pytest.mark.full
TASK = HERE / "lm_eval_task"
SETTINGS = yaml.safe_load(embedded_config().read_text())
MODEL = parse(SETTINGS).models[0]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def stack(cache: Path) -> Iterator[Stack]:
    with Stack({"models": SETTINGS["models"]}, cache) as started:
        yield started.start().ready()


@pytest.fixture(scope="module")
def served(stack: Stack, cache: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    arguments = {
        "model": MODEL.name, "base_url": f"{stack.address}/v1/completions", "tokenized_requests": "True",
        "tokenizer_backend": "huggingface", "tokenizer": str(prepared_folder(MODEL, cache)), "num_concurrent": "4",
        "max_length": str(MODEL.context_tokens),
    }  # fmt: skip
    return evaluated("local-completions", arguments, stack.key, tmp_path_factory.mktemp("served"))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def bare(stack: Stack, cache: Path) -> AsyncIterator[VllmEngine]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # vLLM's and torch's imports warn about themselves
        engine = VllmEngine(MODEL, prepared_folder(MODEL, cache))
    yield engine
    engine.stop()


@pytest.mark.asyncio(loop_scope="module")
async def test_log_likelihoods_are_those_of_the_engine_in_process(
    served: dict[str, Any], bare: VllmEngine, cache: Path
) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(prepared_folder(MODEL, cache))
    apart = []
    for sample in served["samples"]:
        for arguments, responses in zip(sample["arguments"], sample["filtered_resps"], strict=True):
            context, answer = arguments
            ids, before = tokenizer(context + answer).input_ids, len(tokenizer(context).input_ids)
            apart.append(abs(await likelihood(bare, ids, before) - float(responses[0])))
    print(f"largest difference of {len(apart)} log-likelihoods, stack against engine: {max(apart):.2e}")
    assert len(apart) == 48
    assert max(apart) < 1e-6


def test_results_are_those_of_hugging_face_in_process(
    served: dict[str, Any], cache: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    arguments = {"pretrained": str(prepared_folder(MODEL, cache)), "dtype": "float32"}
    local = evaluated("hf", arguments, "", tmp_path_factory.mktemp("local"))
    apart = [
        abs(float(a[0]) - float(b[0]))
        for ours, theirs in zip(served["samples"], local["samples"], strict=True)
        for a, b in zip(ours["filtered_resps"], theirs["filtered_resps"], strict=True)
    ]
    print(f"largest difference of {len(apart)} log-likelihoods, stack against Hugging Face: {max(apart):.2e}")
    assert max(apart) < 1e-3  # float additions in another order
    for metric in ("acc,none", "acc_norm,none"):
        assert served["results"][metric] == pytest.approx(local["results"][metric], abs=1e-6)
    assert 0 < served["results"]["acc,none"] <= 1


def evaluated(model: str, arguments: dict[str, str], key: str, folder: Path) -> dict[str, Any]:
    """Run the harness in its own environment. Returns its results and its samples in order."""
    command = [
        str(python_of("lm-eval")), "-m", "lm_eval", "--model", model,
        "--model_args", ",".join(f"{name}={value}" for name, value in arguments.items()),
        "--tasks", "starserve_code", "--include_path", str(TASK), "--log_samples",
        "--batch_size", "4", "--device", "cpu", "--output_path", str(folder),
    ]  # fmt: skip
    environment = {
        **os.environ, "OPENAI_API_KEY": key, "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1",
        "HF_HOME": str(folder / "hub"), "TOKENIZERS_PARALLELISM": "false",
    }  # fmt: skip
    done = subprocess.run(command, cwd=TASK, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    (results,) = folder.rglob("results_*.json")
    (samples,) = folder.rglob("samples_*.jsonl")
    rows = [json.loads(line) for line in samples.read_text().splitlines()]
    return {
        "results": json.loads(results.read_text())["results"]["starserve_code"],
        "samples": sorted((_sample(row) for row in rows), key=lambda row: row["doc_id"]),
    }


def _sample(row: dict[str, Any]) -> dict[str, Any]:
    pairs = [[a["arg_0"], a["arg_1"]] for _, a in sorted(row["arguments"].items())]
    return {"doc_id": row["doc_id"], "arguments": pairs, "filtered_resps": row["filtered_resps"]}


async def likelihood(engine: VllmEngine, ids: list[int], before: int) -> float:
    """The log-likelihood of what follows the first `before` tokens."""
    asked = Sampling(max_tokens=1, temperature=0.0, top_p=1.0, prompt_logprobs=1)
    async with aclosing(engine.generate(Job(f"job-{hash(tuple(ids))}", tuple(ids), asked, Secret("x")))) as events:
        first = await anext(events)
    assert first.start is not None
    return sum(score.logprob or 0.0 for score in (first.start.prompt_logprobs or ())[before:])
