"""From what a client says to the exact text that a model was trained on. Pure: text in, segments out.

A rendered prompt is a list of segments: text, and control tokens placed by us. User text lands in text
segments only, which the tokenizer encodes with control tokens switched off. That prevents a user from forging
an end-of-text, a chat turn's marker or a fill-in-the-middle marker. It does not prevent words: a user who types
"### Response:" types the same letters as the template, and no tokenizer can tell them apart.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from jinja2 import Template, TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from serve.errors import BadRequest
from serve.fim import by_names, markers_of
from serve.model_settings import ControlTokens
from serve.words import Ask, Infill, Message, Rendered, Segment

# Source of both: train.py of tatsu-lab/stanford_alpaca. No newline follows "### Response:".
ALPACA_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request.\n\n"
)
ALPACA_NO_INPUT = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
)
ALPACA_STOPS = ("\n### Instruction:", "\n### Input:")
ASSISTANT_STOPS = ("\nHuman:", "\n-----")
ASSISTANT_PREAMBLE = (
    "Below are dialogues between people and a technical assistant. The assistant knows programming well, answers "
    "with working code and short reasons, admits what it does not know, and asks when a question is unclear.\n\n"
    "-----\n\n"
)


@dataclass(frozen=True, slots=True)
class ModelTemplate:
    """A model's own chat template (Jinja, from the prepared folder) and the names of its control tokens."""

    source: str
    control_tokens: tuple[str, ...]
    bos: str = ""
    eos: str = ""


class Prompts:
    """Renders the asks of one model."""

    def __init__(
        self,
        chat: str,
        instruct: str,
        eos: str,
        own: ModelTemplate | None,
        preamble: str | None,
        names: Sequence[str] = (),
        in_raw: ControlTokens = "fim",
    ) -> None:
        """`chat` and `instruct` name templates; `eos` is the end token's text; `own` is needed for `model`.

        `names` are the vocabulary's control tokens; `in_raw` says which of them a raw prompt may hold.
        """
        if "model" in (chat, instruct) and own is None:
            raise ValueError("template `model`: the prepared model has no chat template")
        self._chat, self._instruct, self._eos, self._own = chat, instruct, eos, own
        self._preamble = ASSISTANT_PREAMBLE if preamble is None else preamble
        self._names, self._in_raw, self._markers = names, in_raw, markers_of(names, eos)

    def raw(self, prompt: str) -> Rendered:
        """A completion's text, as it is, unless an editor rendered it. Token-id prompts never come here."""
        if self._in_raw == "all":
            return Rendered(tuple(s for s in by_names(prompt, self._names) if s.text))
        if self._in_raw == "fim" and self._markers and (infill := self._markers.taken_apart(prompt)):
            return self.infill(infill)
        return Rendered((Segment(prompt, cut="start"),))

    def infill(self, infill: Infill) -> Rendered:
        """Code around a cursor. BadRequest for a model that was not trained for it."""
        if self._markers is None:
            raise BadRequest("suffix: this model has no fill-in-the-middle tokens; send a prompt alone", "suffix")
        return Rendered(self._markers.segments(infill), add_bos=False, stop_tokens=self._markers.ends)

    def render(self, ask: Ask) -> Rendered:
        """Text of an instruct or chat ask."""
        if ask.form == "instruct" and self._instruct == "alpaca":
            return Rendered((Segment(alpaca(ask.instruction, ask.input)),), ALPACA_STOPS)
        if ask.form == "instruct":
            both = f"{ask.instruction}\n\n{ask.input}" if ask.input else ask.instruction
            return self._turns((Message("user", both),), self._instruct)
        return self._turns(ask.messages, self._chat)

    def _turns(self, messages: Sequence[Message], template: str) -> Rendered:
        if template == "alpaca":
            return Rendered(_merge(_alpaca_chat(messages, self._eos)), ALPACA_STOPS)
        if template == "technical-assistant":
            return Rendered(_merge(_assistant_chat(messages, self._preamble)), ASSISTANT_STOPS)
        if template == "raw":
            return Rendered((Segment("".join(m.text for m in messages)),))
        assert self._own is not None
        return Rendered(_merge(_own_chat(messages, self._own)), add_bos=False)


def alpaca(instruction: str, user_input: str = "") -> str:
    """The frame of the flagship's training, byte for byte."""
    if user_input == "":
        return f"{ALPACA_NO_INPUT}### Instruction:\n{instruction}\n\n### Response:"
    return f"{ALPACA_INPUT}### Instruction:\n{instruction}\n\n### Input:\n{user_input}\n\n### Response:"


def _alpaca_chat(messages: Sequence[Message], eos: str) -> list[Segment]:
    system, turns, continued = _dialogue(messages)
    out = [Segment(ALPACA_NO_INPUT + (f"{system}\n\n" if system else ""))]
    for question, answer in turns[:-1]:
        # In training an answer was followed by eos and nothing else: so it is here.
        out += [Segment(f"### Instruction:\n{question}\n\n### Response:{answer}"), Segment(eos, control=True)]
    return [*out, Segment(f"### Instruction:\n{turns[-1][0]}\n\n### Response:{continued}")]


def _assistant_chat(messages: Sequence[Message], preamble: str) -> list[Segment]:
    system, turns, continued = _dialogue(messages)
    out = [preamble + (f"{system}\n\n" if system else "")]
    out += [f"Human: {question}\n\nAssistant: {answer}\n\n" for question, answer in turns[:-1]]
    # No space after the last colon: the space belongs to the first token of the answer.
    out.append(f"Human: {turns[-1][0]}\n\nAssistant:{f' {continued}' if continued else ''}")
    return [Segment("".join(out))]


def _dialogue(messages: Sequence[Message]) -> tuple[str, list[tuple[str, str]], str]:
    """System text, (question, answer) pairs whose last answer is "", and the answer to be continued."""
    system = "\n\n".join(m.text for m in messages if m.role == "system")
    spoken = [m for m in messages if m.role != "system"]
    if not spoken:
        raise BadRequest("messages holds no user message", "messages")
    pairs: list[tuple[str, str]] = []
    for place, message in enumerate(spoken):
        wanted = "user" if place % 2 == 0 else "assistant"
        if message.role != wanted:
            raise BadRequest(
                "with this model's template, messages alternate between user and assistant, and user begins", "messages"
            )
        if wanted == "user":
            pairs.append((message.text, ""))
        else:
            pairs[-1] = (pairs[-1][0], message.text)
    continued = spoken[-1].text if spoken[-1].role == "assistant" else ""
    return system, pairs, continued


def _own_chat(messages: Sequence[Message], own: ModelTemplate) -> list[Segment]:
    """Render the model's template with a mark in place of each text, then put the texts in as plain text.

    The template's own words are searched for control tokens, the users' never. A template that computes with
    the content (trims it, say) sees the mark instead.
    """
    mark = secrets.token_hex(12)
    continued = bool(messages) and messages[-1].role == "assistant"
    turns = [{"role": m.role, "content": f"[{mark}:{i}]"} for i, m in enumerate(messages)]
    text = _jinja(own, turns, add_generation_prompt=not continued)
    if continued:
        # What the template writes after an answer ends it; cut there and the model goes on.
        text = text[: text.rindex(f"[{mark}:{len(turns) - 1}]") + len(f"[{mark}:{len(turns) - 1}]")]
    names = "|".join(re.escape(name) for name in sorted(own.control_tokens, key=len, reverse=True))
    pieces = re.split(rf"(\[{mark}:\d+\]{'|' + names if names else ''})", text)
    out: list[Segment] = []
    for place, piece in enumerate(pieces):
        if place % 2 == 0:
            out.append(Segment(piece))
        elif piece.startswith(f"[{mark}:"):
            out.append(Segment(messages[int(piece[len(mark) + 2 : -1])].text))
        else:
            out.append(Segment(piece, control=True))
    return out


def _jinja(own: ModelTemplate, turns: list[dict[str, str]], add_generation_prompt: bool) -> str:
    def refuse(message: str) -> None:
        raise TemplateError(message)

    words: dict[str, Any] = {"bos_token": own.bos, "eos_token": own.eos, "raise_exception": refuse}
    try:
        return _compiled(own.source).render(messages=turns, add_generation_prompt=add_generation_prompt, **words)
    except TemplateError:
        # The template's own message may quote what the user wrote.
        raise BadRequest("the model's chat template refuses these messages", "messages") from None


@lru_cache(maxsize=64)
def _compiled(source: str) -> Template:
    """Once for each model: it takes milliseconds. Rendering changes nothing in it."""
    return ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True).from_string(source)


def _merge(segments: list[Segment]) -> tuple[Segment, ...]:
    """Join neighbouring texts, so that tokens form across the seam as they did in training."""
    out, texts = list[Segment](), list[str]()
    for segment in (*segments, None):
        if segment is not None and not segment.control:
            texts.append(segment.text)
            continue
        if text := "".join(texts):
            out.append(Segment(text))
        texts.clear()
        if segment is not None:
            out.append(segment)
    return tuple(out)
