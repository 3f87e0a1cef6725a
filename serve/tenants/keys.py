"""The text of an API key: `sk-<key id>_<secret>`. At rest there is only an HMAC-SHA-256 of the secret."""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets

from serve.words import Secret

NOBODY = "0" * 64  # a digest that no secret has: compared where there is nothing to compare with
_KEY = re.compile(r"sk-([A-Za-z0-9]{8,32})_([A-Za-z0-9_-]{16,128})\Z")
_SCHEME = "bearer"


def parse(authorization: str | None) -> tuple[str, str] | None:
    """Key id and secret of an Authorization header; None for whatever is not one of our keys."""
    scheme, _, token = (authorization or "").partition(" ")
    match = _KEY.match(token.strip(" "))
    return (match[1], match[2]) if scheme.lower() == _SCHEME and match else None


def new_key_id() -> str:
    return secrets.token_hex(6)


def new_secret() -> str:
    """256 random bits."""
    return secrets.token_hex(32)


def text_of(key_id: str, secret: str) -> Secret:
    """The key as its owner sees it, once."""
    return Secret(f"sk-{key_id}_{secret}")


def digest(pepper: Secret, secret: str) -> str:
    """What is kept of a secret: 64 hex digits."""
    return _hmac(pepper, secret)


def cache_salt(pepper: Secret, tenant_id: str) -> Secret:
    """What keeps the tenant's blocks of the prefix cache apart from everybody else's."""
    return Secret(_hmac(pepper, f"cache-salt:{tenant_id}"))


def pepper_mark(pepper: Secret) -> str:
    """By this a database knows the pepper again. No secret has a colon, so it is nobody's digest."""
    return _hmac(pepper, "pepper:")


def _hmac(pepper: Secret, text: str) -> str:
    return hmac.new(pepper.reveal().encode(), text.encode(), hashlib.sha256).hexdigest()
