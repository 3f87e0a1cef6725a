"""Log-probabilities in the two shapes that OpenAI gives them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from serve.words import TokenLogprob

Spell = Callable[[int], bytes]  # the bytes of a token
_LOWEST = -9999.0  # stands for minus infinity, which JSON cannot write


def of_chat(scores: Sequence[TokenLogprob], spell: Spell) -> dict[str, Any]:
    def entry(token_id: int, logprob: float | None) -> dict[str, Any]:
        raw = spell(token_id)
        return {"token": raw.decode("utf-8", "replace"), "logprob": _finite(logprob), "bytes": list(raw)}

    content = [
        {**entry(s.token_id, s.logprob), "top_logprobs": [entry(i, logprob) for i, logprob in s.top]} for s in scores
    ]
    return {"content": content, "refusal": None}


def of_completion(scores: Sequence[TokenLogprob], spell: Spell, offset: int) -> tuple[dict[str, Any], int]:
    """The object, and the offset in characters at which the next token begins.

    `top_logprobs` holds the token itself too. A prompt's first token, which nothing predicts, has null.
    """
    tokens, values, tops, offsets = list[str](), list[float | None](), list[dict[str, float] | None](), list[int]()
    for score in scores:
        raw = spell(score.token_id)
        tokens.append(_name(raw))
        offsets.append(offset)
        offset += len(raw.decode("utf-8", "ignore"))
        if score.logprob is None:
            values.append(None)
            tops.append(None)
        else:
            values.append(_finite(score.logprob))
            pairs = ((score.token_id, score.logprob), *score.top)
            tops.append({_name(spell(i)): max(logprob, _LOWEST) for i, logprob in pairs})
    return {"tokens": tokens, "token_logprobs": values, "top_logprobs": tops, "text_offset": offsets}, offset


def _name(raw: bytes) -> str:
    """The token's text, or OpenAI's spelling of bytes that are no text by themselves: two tokens never look alike."""
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)


def _finite(logprob: float | None) -> float:
    return _LOWEST if logprob is None else max(logprob, _LOWEST)
