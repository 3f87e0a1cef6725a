"""What a tenant may ask for: which routes and models, and how much in one request."""

from __future__ import annotations

from serve.errors import BadRequest, Forbidden
from serve.words import Sampling, Scope, Tenant


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


def check_sampling(tenant: Tenant, sampling: Sampling) -> None:
    ceilings = tenant.ceilings
    if ceilings.choices is not None and sampling.n > ceilings.choices:
        raise BadRequest(f"n is {sampling.n}; your tenant may ask for {ceilings.choices}", "n")
    most = ceilings.output_tokens
    if most is not None and sampling.max_tokens is not None and sampling.max_tokens > most:
        raise BadRequest(f"max_tokens is {sampling.max_tokens}; your tenant may ask for {most}", "max_tokens")
