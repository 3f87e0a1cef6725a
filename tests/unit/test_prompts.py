"""Prompts are data: golden texts and golden ids of each template."""

from __future__ import annotations

from pathlib import Path

import pytest

from serve.errors import BadRequest
from serve.prompts import ASSISTANT_PREAMBLE, Prompts, alpaca
from serve.tokens import Vocabulary
from serve.words import Ask, Message, Rendered, Sampling, Segment
from tests.support.alpaca import NO_INPUT, WITH_INPUT
from tests.support.tiny_starcoder import CONTROL


def chat(*turns: tuple[str, str], template: str = "alpaca", vocabulary: Vocabulary | None = None) -> Rendered:
    own = vocabulary.template if vocabulary else None
    prompts = Prompts(template, "alpaca", "<|endoftext|>", own, None)
    return prompts.render(Ask("chat", "m", Sampling(), messages=tuple(Message(*t) for t in turns)))


def text(rendered: Rendered) -> str:
    return "".join(segment.text for segment in rendered.segments)


def test_alpaca_is_the_training_frame_byte_for_byte() -> None:
    assert alpaca("Sort a list.") == NO_INPUT
    assert alpaca("Sort a list.", "[2, 1]") == WITH_INPUT
    assert alpaca("{x} %s {}", "{y}").count("{x} %s {}") == 1


def test_one_user_message_is_the_alpaca_form_without_input() -> None:
    rendered = chat(("user", "Sort a list."))
    assert rendered.segments == (Segment(NO_INPUT),)
    assert rendered.stops == ("\n### Instruction:", "\n### Input:")


def test_alpaca_chat_ends_earlier_turns_with_eos_and_continues_a_last_answer() -> None:
    rendered = chat(("system", "Be short."), ("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d"))
    frame = NO_INPUT.split("### Instruction")[0]
    assert rendered.segments == (
        Segment(f"{frame}Be short.\n\n### Instruction:\na\n\n### Response:b"),
        Segment("<|endoftext|>", control=True),
        Segment("### Instruction:\nc\n\n### Response:d"),
    )


def test_technical_assistant_is_a_dialogue_after_a_preamble() -> None:
    rendered = chat(("user", "a"), ("assistant", "b"), ("user", "c"), template="technical-assistant")
    assert text(rendered) == f"{ASSISTANT_PREAMBLE}Human: a\n\nAssistant: b\n\nHuman: c\n\nAssistant:"
    assert rendered.stops == ("\nHuman:", "\n-----")


def test_raw_adds_nothing() -> None:
    assert chat(("user", "a"), template="raw").segments == (Segment("a"),)


def test_turns_that_do_not_alternate_are_refused() -> None:
    with pytest.raises(BadRequest, match="alternate"):
        chat(("user", "a"), ("user", "b"))


@pytest.mark.parametrize(
    "turns", [(("user", "Sort 12 items"),), (("system", " x "), ("user", "y\n"), ("assistant", "z"))]
)
def test_a_models_own_template_gives_the_ids_of_transformers(
    words_folder: Path, turns: tuple[tuple[str, str], ...]
) -> None:
    from transformers import AutoTokenizer

    vocabulary = Vocabulary(words_folder)
    reference = AutoTokenizer.from_pretrained(words_folder)
    last = turns[-1][0] == "assistant"
    expected = reference.apply_chat_template(
        [{"role": r, "content": t} for r, t in turns],
        add_generation_prompt=not last, continue_final_message=last, return_dict=False,
    )  # fmt: skip
    assert list(vocabulary.encode(chat(*turns, template="model", vocabulary=vocabulary))) == expected


def test_user_text_never_becomes_a_control_token(words_folder: Path) -> None:
    vocabulary = Vocabulary(words_folder)
    forged = " ".join(CONTROL)
    for template in ("alpaca", "model", "technical-assistant", "raw"):
        ids = vocabulary.encode(chat(("user", forged), template=template, vocabulary=vocabulary))
        ours = vocabulary.encode(chat(("user", "x"), template=template, vocabulary=vocabulary))
        assert [i for i in ids if i < len(CONTROL)] == [i for i in ours if i < len(CONTROL)]
