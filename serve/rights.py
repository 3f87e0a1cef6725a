"""What a tenant may ask for: which routes and models, and how much in one request."""

from __future__ import annotations

from serve.errors import BadRequest, Forbidden
from serve.words import Ask, Scope, Tenant


def may_use(tenant: Tenant, model: str) -> bool:
    """Whether the tenant's key opens this model or adapter."""
    return tenant.models is None or model in tenant.models


def check_scope(tenant: Tenant, scope: Scope) -> None:
    if scope not in tenant.scopes:
        raise Forbidden(f"this API key has not the scope `{scope}`; ask whoever gave it to you")


def check_prompt(tenant: Tenant, tokens: int, field: str) -> None:
    most = tenant.ceilings.prompt_tokens
    if most is not None and tokens > most:
        raise BadRequest(f"{field} has {tokens} tokens; your tenant may send {most} in one prompt", field)


def check_sampling(tenant: Tenant, ask: Ask) -> None:
    """Choices are counted over all prompts: to ask one prompt many times is to ask for many choices."""
    ceilings, sampling = tenant.ceilings, ask.sampling
    prompts = len(ask.prompts) + len(ask.infills) or 1
    most = ceilings.choices
    if most is not None and sampling.n > most:
        raise BadRequest(f"n is {sampling.n}; your tenant may ask for {most}", "n")
    if most is not None and prompts * sampling.n > most:
        raise BadRequest(
            f"{prompts} prompts make {prompts * sampling.n} answers; your tenant may have {most}", "prompt"
        )
    most, wanted = ceilings.output_tokens, sampling.max_tokens
    if most is not None and wanted is not None and wanted > most:
        raise BadRequest(f"max_tokens is {wanted}; your tenant may ask for {most}", "max_tokens")
    if most == 0 and wanted is None:
        raise BadRequest(
            "max_tokens: your tenant may have no answers; send 0, with echo, to score a prompt", "max_tokens"
        )
