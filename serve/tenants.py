"""From an API key to a tenant. Keys are `sk-<public id>_<secret>`; at rest there is only an HMAC of the secret."""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import re
import secrets
from dataclasses import dataclass
from pathlib import Path

from serve.errors import Unauthorized
from serve.words import Secret, Tenant

_KEY = re.compile(r"sk-([A-Za-z0-9]{8,32})_([A-Za-z0-9_-]{16,128})\Z")
_NOBODY = "0" * 64


@dataclass(frozen=True, slots=True)
class KeyRow:
    """A key at rest. `digest`: hex HMAC-SHA-256 of the secret under the pepper."""

    key_id: str
    tenant_id: str
    digest: str


class Tenants:
    """The keys of one deployment, read from a 0600 file."""

    def __init__(self, pepper: Secret, rows: list[KeyRow]) -> None:
        self._pepper, self._rows = pepper.reveal().encode(), {row.key_id: row for row in rows}

    @classmethod
    def read(cls, path: Path) -> Tenants:
        raw = json.loads(path.read_text())
        return cls(Secret(raw["pepper"]), [KeyRow(**row) for row in raw["keys"]])

    def identify(self, authorization: str | None) -> Tenant:
        """The tenant of an Authorization header, or Unauthorized.

        An unknown id and a wrong secret run the same HMAC and compare, so that time tells nothing.
        """
        scheme, _, token = (authorization or "").partition(" ")
        match = _KEY.match(token.strip())
        if scheme.lower() != "bearer" or not match:
            raise Unauthorized("send an API key of this server as `Authorization: Bearer sk-…`")
        row = self._rows.get(match[1])
        right = hmac.compare_digest(_hmac(self._pepper, match[2]), row.digest if row else _NOBODY)
        if row is None or not right:
            raise Unauthorized("this API key is not known here")
        return Tenant(row.tenant_id, row.key_id, Secret(_hmac(self._pepper, f"cache-salt:{row.tenant_id}")))


def make_development_keys(path: Path, key_path: Path) -> bool:
    """Make a pepper and one key at first start (both files 0600). True if they were made now."""
    if path.exists() and key_path.exists():
        return False
    pepper, key_id, secret = secrets.token_hex(32), secrets.token_hex(6), secrets.token_hex(24)
    row = {"key_id": key_id, "tenant_id": "development", "digest": _hmac(pepper.encode(), secret)}
    _write_private(path, json.dumps({"pepper": pepper, "keys": [row]}))
    _write_private(key_path, f"sk-{key_id}_{secret}")
    return True


def _hmac(pepper: bytes, text: str) -> str:
    return hmac.new(pepper, text.encode(), hashlib.sha256).hexdigest()


def _write_private(path: Path, text: str) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
