"""From an ask to the engine's jobs: profile and defaults, prompts rendered and counted, and what must be refused."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from serve.affinity import common_start
from serve.engines.base import CountingEngine
from serve.errors import BadRequest, ContextOverflow
from serve.model_settings import Model
from serve.prompts import Prompts
from serve.rights import check_prompt, check_sampling
from serve.threads import Threads
from serve.tokens import Vocabulary
from serve.words import Ask, Form, Job, Message, Rendered, Sampling, Share, Tenant

RAW_COMPLETION_TOKENS = 16  # OpenAI's default of the raw completion form
_FEW_IDS = 4096
_FIELD = {"completion": "prompt", "fim": "prompt", "instruct": "instruction", "chat": "messages"}


class _Prompt(NamedTuple):
    """Its token ids, and what it was rendered to unless it came as ids."""

    ids: tuple[int, ...]
    rendered: Rendered | None = None


@dataclass(frozen=True, slots=True)
class Served:
    """One model as a router knows it: its settings, its words, its prompts, and the engine that answers."""

    model: Model
    vocabulary: Vocabulary
    prompts: Prompts
    engine: CountingEngine
    licence: Mapping[str, Any] = field(default_factory=dict)  # its texts as they came with the weights
    adapter: str | None = None  # served under this name, on the engine of its base model


def preambles(prompts: Prompts, vocabulary: Vocabulary) -> list[tuple[int, ...]]:
    """Token ids that the templates put before every chat, and before every instruction without and with an input."""
    said = ("x", "1", "(")  # alike in nothing, so that what is common is the template's
    forms: list[tuple[Form, str]] = [("chat", ""), ("instruct", ""), ("instruct", "y")]
    found = {
        common_start([vocabulary.encode(prompts.render(_asking(form, text, given))) for text in said])
        for form, given in forms
    }
    return sorted(found - {()})


def _asking(form: Form, text: str, given: str) -> Ask:
    return Ask(form, "", Sampling(), instruction=text, input=given, messages=(Message("user", text),))


class JobMaker:
    """Makes jobs of asks, with tokenizers in threads."""

    def __init__(self, tokenizers: Threads, logprob_entries: int) -> None:
        """`logprob_entries`: most log-probabilities of one answer."""
        self._tokenizers, self._logprob_entries = tokenizers, logprob_entries

    async def jobs(
        self, ask: Ask, tenant: Tenant, served: Served, request_id: str, traceparent: str | None = None
    ) -> list[Job]:
        """One job per prompt: what the client asked for, with the model's defaults and stops."""
        check_sampling(tenant, ask)
        ask = _profiled(ask, served)
        sampling, jobs = _with_defaults(ask.sampling, served), list[Job]()
        for ids, rendered in await self._prompts(ask, tenant, served):
            if not ids:
                raise BadRequest(f"{_FIELD[ask.form]} is empty", _FIELD[ask.form])
            check_prompt(tenant, len(ids), _FIELD[ask.form])
            most = _max_tokens(ask, len(ids), served.model.context_tokens, tenant.ceilings.output_tokens)
            if sampling.min_tokens > most:
                raise BadRequest(
                    f"min_tokens is {sampling.min_tokens}, and the answer has at most {most} tokens; "
                    "send max_tokens too",
                    "min_tokens",
                )
            ends = tuple(served.vocabulary.id_of(name) for name in rendered.stop_tokens) if rendered else ()
            sampled = replace(
                sampling,
                stop=tuple(dict.fromkeys(sampling.stop + (rendered.stops if rendered else ()))),
                stop_token_ids=tuple(dict.fromkeys(sampling.stop_token_ids + ends)),
                max_tokens=most,
            )
            job_id, share = f"{request_id}-{len(jobs)}", Share(tenant.tenant_id, tenant.weight, tenant.band)
            jobs.append(Job(job_id, ids, sampled, tenant.cache_salt, traceparent, served.adapter, share))
        if (entries := sum(map(_logprob_entries, jobs))) > self._logprob_entries:
            raise BadRequest(
                f"logprobs: this answer would have up to {entries} log-probabilities, and at most "
                f"{self._logprob_entries} are told; ask for fewer prompts, tokens or alternatives",
                "logprobs",
            )
        return jobs

    async def _prompts(self, ask: Ask, tenant: Tenant, served: Served) -> list[_Prompt]:
        """Whatever takes time in proportion to a prompt takes it in a thread; a few ids are quicker looked at here."""
        few = ask.prompts and sum(map(len, ask.prompts)) <= _FEW_IDS
        if few and all(isinstance(prompt, tuple) for prompt in ask.prompts):
            return _encoded(ask, served)
        return await self._tokenizers.run(tenant.tenant_id, _encoded, ask, served)


def _encoded(ask: Ask, served: Served) -> list[_Prompt]:
    """Render and encode every prompt of an ask."""
    texts: list[Rendered | tuple[int, ...]] = [served.prompts.infill(infill) for infill in ask.infills]
    if ask.form in ("chat", "instruct"):
        texts = [served.prompts.render(ask)]
    texts += [served.prompts.raw(p) if isinstance(p, str) else p for p in ask.prompts]
    room = None
    if ask.truncate:
        room = served.model.context_tokens - (ask.sampling.max_tokens or RAW_COMPLETION_TOKENS)
    prompts = list[_Prompt]()
    for text in texts:
        if isinstance(text, tuple):
            _check_ids(text, served, "prompt")
            prompts.append(_Prompt(text))
        elif sum(segment.control for segment in text.segments) > served.model.context_tokens:
            raise ContextOverflow(
                f"{_FIELD[ask.form]} has more control tokens than this model's context, which is "
                f"{served.model.context_tokens} tokens",
                _FIELD[ask.form],
            )
        else:
            prompts.append(_Prompt(served.vocabulary.encode(text, room), text))
    return prompts


def _logprob_entries(job: Job) -> int:
    asked = job.sampling
    of_prompt = 0 if asked.prompt_logprobs is None else len(job.prompt_ids) * (1 + asked.prompt_logprobs)
    of_answer = 0 if asked.logprobs is None else (asked.max_tokens or 0) * (1 + asked.logprobs)
    return asked.n * (of_prompt + of_answer)


def _profiled(ask: Ask, served: Served) -> Ask:
    """The ask, with its profile's sampling where the client sent none."""
    if ask.profile is None:
        return ask
    profile = served.model.profiles.get(ask.profile)
    if profile is None:
        known = ", ".join(served.model.profiles) or "none"
        raise BadRequest(f"profile: this model has no such profile; it has {known}", "profile")
    open_fields = {k: v for k, v in profile.model_dump(exclude_none=True).items() if k not in ask.given}
    return replace(ask, sampling=replace(ask.sampling, **open_fields))


def _with_defaults(sampling: Sampling, served: Served) -> Sampling:
    defaults = served.model.defaults
    _check_ids((i for i, _ in sampling.logit_bias), served, "logit_bias")
    _check_ids(sampling.stop_token_ids, served, "stop_token_ids")
    if served.model.engine.ngram_tokens is not None:
        # vLLM 0.32 leaves both out when it guesses tokens, and says so in its log alone.
        for name in ("min_p", "logit_bias"):
            if getattr(sampling, name):
                raise BadRequest(f"{name}: not served by this model, whose engine guesses tokens", name)
    temperature = defaults.temperature if sampling.temperature is None else sampling.temperature
    if sampling.n > 1 and temperature == 0:
        raise BadRequest("n: at temperature 0 all answers are the same; send n 1, or a temperature above 0", "n")
    return replace(
        sampling, temperature=temperature, top_p=defaults.top_p if sampling.top_p is None else sampling.top_p
    )


def _check_ids(ids: Iterable[int], served: Served, field: str) -> None:
    if max(ids, default=0) >= served.vocabulary.size:
        raise BadRequest(f"{field}: token ids must lie in 0…{served.vocabulary.size - 1}", field)


def _max_tokens(ask: Ask, prompt: int, context: int, ceiling: int | None) -> int:
    """What was asked for; by default what fits, and 16 on the raw form. What a client asked for is never cut."""
    room, wanted, field = context - prompt, ask.sampling.max_tokens, _FIELD[ask.form]
    most = room if ceiling is None else min(room, ceiling)
    if room < 1:
        raise ContextOverflow(
            f"{field} has {prompt} tokens; this model's context is {context} tokens, and at least 1 must be left "
            "for the answer", field,
        )  # fmt: skip
    if wanted is None:
        raw = ask.form == "completion" and not ask.as_much_as_fits
        return min(most, RAW_COMPLETION_TOKENS) if raw else most
    if "max_tokens" not in ask.given:
        return min(wanted, most)  # the profile's number, not the client's
    if wanted > room:
        raise ContextOverflow(
            f"{field} has {prompt} tokens and max_tokens is {wanted}; together they exceed this model's context of "
            f"{context} tokens", "max_tokens",
        )  # fmt: skip
    return wanted
