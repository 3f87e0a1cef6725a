"""How a body wants its answer sampled: bodies to `Sampling`, within the caps."""

from __future__ import annotations

from serve import schemas
from serve.errors import BadRequest
from serve.settings import Caps
from serve.wire.bodies import ChatBody, CompletionBody, FimBody, InstructBody, ResponseFormat, Sampled
from serve.words import Sampling


def sampling(body: Sampled, caps: Caps) -> Sampling:
    echo = isinstance(body, CompletionBody) and bool(body.echo)
    logprobs = _logprobs(body, caps, echo)
    stop = (body.stop,) if isinstance(body.stop, str) else tuple(body.stop or ())
    at_most(len(stop), caps.stops, "stop", "strings")
    if any(not s or len(s) > caps.stop_characters for s in stop):
        raise BadRequest(f"stop: each string has 1 to {caps.stop_characters} characters", "stop")
    at_most(len(body.stop_token_ids or ()), caps.stop_token_ids, "stop_token_ids", "tokens")
    at_most(body.n or 1, caps.choices, "n", "answers")
    most = _max_tokens(body, echo)
    if most is not None and (body.min_tokens or 0) > most:
        raise BadRequest(f"min_tokens is {body.min_tokens}, more than max_tokens ({most})", "min_tokens")
    if isinstance(body, CompletionBody) and body.best_of not in (None, body.n or 1):
        raise BadRequest("best_of is only served when it equals n", "best_of")
    return Sampling(
        most, body.temperature, body.top_p, body.n or 1, body.seed, stop, tuple(body.stop_token_ids or ()),
        bool(body.ignore_eos), body.min_tokens or 0, max(0, body.top_k or 0), body.min_p or 0.0,
        body.presence_penalty or 0.0, body.frequency_penalty or 0.0,
        1.0 if body.repetition_penalty is None else body.repetition_penalty,
        _logit_bias(body.logit_bias or {}, caps), body.skip_special_tokens is not False,
        logprobs=logprobs, prompt_logprobs=logprobs if echo else None, json_schema=_json_schema(body, caps),
    )  # fmt: skip


def given_names(body: Sampled) -> frozenset[str]:
    """Names of the sampling fields that the client sent itself: no profile changes them."""
    return frozenset("max_tokens" if name == "max_completion_tokens" else name for name in body.model_fields_set)


def with_options(body: Sampled) -> Sampled:
    """Other APIs' names of the same things: Ollama's `options`, Mistral's `random_seed`."""
    if isinstance(body, FimBody) and body.random_seed is not None and body.seed is None:
        return body.model_copy(update={"seed": body.random_seed % (1 << 63)})
    if not isinstance(body, CompletionBody) or body.options is None:
        return body
    options = body.options
    given = {"temperature": options.temperature, "stop": options.stop, "max_tokens": options.num_predict}
    if (options.num_predict or 0) < 0:
        del given["max_tokens"]
    update = {name: value for name, value in given.items() if value is not None and getattr(body, name) is None}
    return body.model_copy(update=update)


def at_most(given: int, cap: int, name: str, unit: str) -> None:
    if given > cap:
        raise BadRequest(f"{name}: at most {cap} {unit}, not {given}", name)


def _max_tokens(body: Sampled, echo: bool) -> int | None:
    newer = body.max_completion_tokens if isinstance(body, ChatBody | FimBody) else None
    if newer is not None and body.max_tokens not in (None, newer):
        raise BadRequest("max_tokens and max_completion_tokens differ; send one", "max_completion_tokens")
    if body.max_tokens == 0 and not echo:
        raise BadRequest("max_tokens: must be at least 1 (0 is for scoring a prompt, with echo)", "max_tokens")
    return body.max_tokens if newer is None else newer


def _logprobs(body: Sampled, caps: Caps, echo: bool) -> int | None:
    if isinstance(body, ChatBody):
        if body.top_logprobs and not body.logprobs:
            raise BadRequest("top_logprobs is only allowed when logprobs is true", "top_logprobs")
        at_most(body.top_logprobs or 0, caps.logprobs, "top_logprobs", "alternatives")
        return body.top_logprobs or 0 if body.logprobs else None
    if isinstance(body, FimBody):
        return None
    assert isinstance(body, CompletionBody | InstructBody)
    cap = caps.echo_logprobs if echo else caps.logprobs
    at_most(body.logprobs or 0, cap, "logprobs", "alternatives" + (" with echo" if echo else ""))
    return body.logprobs


def _logit_bias(given: dict[str, float], caps: Caps) -> tuple[tuple[int, float], ...]:
    at_most(len(given), caps.logit_bias, "logit_bias", "tokens")
    if not all(key.isascii() and key.isdigit() and len(key) < 10 for key in given):
        raise BadRequest("logit_bias: each key is a token id in digits", "logit_bias")
    if any(abs(bias) > 100 for bias in given.values()):
        raise BadRequest("logit_bias: each value lies in -100…100", "logit_bias")
    return tuple((int(key), bias) for key, bias in given.items())


def _json_schema(body: Sampled, caps: Caps) -> str | None:
    wanted: ResponseFormat | None = getattr(body, "response_format", None)
    if wanted is None or wanted.type == "text":
        return None
    # The grammar alone knows where the answer ends; told of other end tokens, it may leave the engine no token at all.
    for name in ("ignore_eos", "min_tokens", "stop_token_ids"):
        if getattr(body, name):
            raise BadRequest(f"{name}: not with response_format; such an answer ends where its JSON ends", name)
    if wanted.type == "json_object":
        return schemas.ANY_OBJECT
    if wanted.json_schema is None or wanted.json_schema.json_schema is None:
        raise BadRequest("response_format.json_schema.schema is required for json_schema", "response_format")
    return schemas.checked(wanted.json_schema.json_schema, caps)
