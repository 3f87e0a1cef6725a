"""Tiny random StarCoders whose feed-forward layers dominate, their answers by Hugging Face, and engines for them."""

from __future__ import annotations

import asyncio
import hashlib
import time
import warnings
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from serve.engines.vllm import VllmEngine
from serve.settings import parse
from serve.weights.adapters import checked
from serve.words import Event, Job, Sampling, Secret
from tests.support.stack import tiny_model
from tests.support.tiny_starcoder import CONTEXT, write_tokenizer

ON_CPU = {"worker_extension_cls": "tests.support.starcoder.stages.Stage"}
STAGES_2: dict[str, Any] = {"pipeline_parallel_size": 2, "vllm": ON_CPU}
LAYERS = ("c_attn", "c_proj", "c_fc")
PROMPT = "def add(a, b):\n    return"
TOKENS = 64  # of each greedy answer
PROMPTS = tuple(tuple((37 * i + 11 * j) % 500 + 30 for j in range(3 + 5 * i)) for i in range(8))


@dataclass(frozen=True)
class Answer:
    ids: tuple[int, ...]
    logprobs: tuple[float, ...]  # of the chosen ids


def write_model(folder: Path, *, seed: int = 0, vocab_size: int | None = None, **config: Any) -> Path:
    """A GPTBigCode in float32; nine tenths of each layer's weights are its feed-forward matrices."""
    import torch
    from transformers import GPTBigCodeConfig, GPTBigCodeForCausalLM

    known = write_tokenizer(folder)
    torch.manual_seed(seed)
    shape: dict[str, Any] = {
        "n_embd": 128,
        "n_layer": 3,
        "n_head": 4,
        "n_inner": 2048,
        "activation_function": "gelu",
        "initializer_range": 0.15,
    }
    model = GPTBigCodeForCausalLM(GPTBigCodeConfig(
        vocab_size=vocab_size or known, n_positions=CONTEXT, bos_token_id=0, eos_token_id=0,
        **{**shape, **config},
    )).to(torch.float32)  # fmt: skip
    with torch.no_grad():
        # Biases and norms start at 0 and 1, where an error in them would not show.
        for name, weight in model.named_parameters():
            if name.endswith("bias") or ".ln_" in name:
                weight.add_(torch.randn_like(weight) * 0.1)
        model.transformer.wte.weight[0] = 0  # the end token: an answer goes on until max_tokens
    model.save_pretrained(folder)
    return folder


def by_hugging_face(folder: Path, prompts: Sequence[Sequence[int]] = PROMPTS) -> list[Answer]:
    """`generate`, greedy, in float32."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    answers = []
    for prompt in prompts:
        with torch.no_grad():
            out = model.generate(
                torch.tensor([prompt]), max_new_tokens=TOKENS, do_sample=False, eos_token_id=None, pad_token_id=0,
                return_dict_in_generate=True, output_logits=True,
            )  # fmt: skip
        ids = out.sequences[0, len(prompt) :].tolist()
        scores = [torch.log_softmax(step[0], -1)[i].item() for step, i in zip(out.logits, ids, strict=True)]
        answers.append(Answer(tuple(ids), tuple(scores)))
    return answers


def write_adapter(base: Path, folder: Path, *, rank: int = 4, seed: int = 1, targets: Sequence[str] = LAYERS) -> Path:
    """A LoRA adapter with random matrices as PEFT saves it in `folder`, and the merged model in `folder`/merged."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=list(targets), task_type="CAUSAL_LM")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT: no hub here to look for the base model's vocabulary
        model = get_peft_model(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), config)
        with torch.no_grad():
            for name, weight in model.named_parameters():
                if "lora_" in name:
                    weight.normal_(std=0.2)
        model.save_pretrained(str(folder))
        merged: Any = model.merge_and_unload()
        merged.save_pretrained(folder / "merged")
    return folder


def adapter_settings(name: str, folder: Path) -> dict[str, str]:
    return {"name": name, "folder": str(folder), "sha256": sum_of(folder)}


def sum_of(folder: Path) -> str:
    return hashlib.sha256((folder / "adapter_model.safetensors").read_bytes()).hexdigest()


def shared_memory() -> set[Path]:
    """What ranks on CPUs talk through; vLLM leaves it behind."""
    return set(Path("/dev/shm").glob("vllm_dist_*"))


@asynccontextmanager
async def started(
    folder: Path,
    *,
    context_tokens: int = 512,
    adapters: Sequence[dict[str, str]] = (),
    any_class: bool = False,
    dummy: bool = False,
    **engine: Any,
) -> AsyncIterator[VllmEngine]:
    """Our own engine in this process, on the model in `folder`. It leaves nothing in shared memory.

    `any_class`: without the check that our class has built the model.
    """
    model = {**tiny_model(folder, **engine), "context_tokens": context_tokens, "adapters": list(adapters)}
    settings = parse({"models": [model]}).models[0]
    before = shared_memory()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # vLLM's and torch's imports warn about themselves
        built = VllmEngine(settings, folder, ranks={a.name: checked(a, folder) for a in settings.adapters}, dummy=dummy)
    try:
        await built.warm_up(any_class)
        await built.load_adapters()
        yield built
    finally:
        built.stop()
        for left in shared_memory() - before:  # in a stack the supervisor does this
            left.unlink()


def ids_of(folder: Path, text: str = PROMPT) -> list[int]:
    from transformers import AutoTokenizer

    return [int(i) for i in AutoTokenizer.from_pretrained(folder)(text).input_ids]


async def bare_answer(engine: VllmEngine, ids: list[int], **sampling: Any) -> list[Event]:
    asked = Sampling(**{"temperature": 1.0, "top_p": 1.0, "max_tokens": 24, **sampling})
    job = Job(f"job-{time.monotonic_ns()}", tuple(ids), asked, Secret("salt"))
    async with aclosing(engine.generate(job)) as events:
        return [event async for event in events]


async def greedy(engine: VllmEngine, prompts: Sequence[Sequence[int]] = PROMPTS, **job: Any) -> list[Answer]:
    """All prompts at once."""
    sampling = Sampling(max_tokens=TOKENS, temperature=0.0, top_p=1.0, logprobs=0, ignore_eos=True)

    async def one(prompt: Sequence[int]) -> Answer:
        asked = Job(f"job-{time.monotonic_ns()}", tuple(prompt), sampling, Secret("salt"), **job)
        async with aclosing(engine.generate(asked)) as events:
            made = [event async for event in events]
        ids = tuple(i for event in made for i in event.token_ids)
        return Answer(ids, tuple(p.logprob for event in made for p in event.logprobs or () if p.logprob is not None))

    return list(await asyncio.gather(*(one(prompt) for prompt in prompts)))


def assert_same(found: Sequence[Answer], wanted: Sequence[Answer]) -> None:
    assert min(len(set(answer.ids)) for answer in wanted) >= 16
    assert [answer.ids for answer in found] == [answer.ids for answer in wanted]
    for one, other in zip(found, wanted, strict=True):
        assert max(abs(a - b) for a, b in zip(one.logprobs, other.logprobs, strict=True)) < 1e-3
