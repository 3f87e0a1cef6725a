"""The tokenizer and the shape of the tiny random StarCoder of the tests."""

from __future__ import annotations

import json
from pathlib import Path

CONTROL = [
    "<|endoftext|>",
    "<fim_prefix>",
    "<fim_middle>",
    "<fim_suffix>",
    "<fim_pad>",
    "<filename>",
    "<gh_stars>",
    "<issue_start>",
    "<issue_comment>",
    "<issue_closed>",
    "<jupyter_start>",
    "<jupyter_text>",
    "<jupyter_code>",
    "<jupyter_output>",
    "<empty_output>",
    "<commit_before>",
    "<commit_msg>",
    "<commit_after>",
    "<reponame>",
]
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
