"""Identity comes from the key alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from serve.errors import Unauthorized
from serve.tenants import Tenants, make_development_keys
from serve.words import Secret


def test_a_development_key_is_made_once_for_its_owner_alone(tmp_path: Path) -> None:
    keys, key = tmp_path / "keys", tmp_path / "key"
    assert make_development_keys(keys, key)
    made = key.read_text()
    assert not make_development_keys(keys, key)
    assert key.read_text() == made
    assert (keys.stat().st_mode & 0o777, key.stat().st_mode & 0o777) == (0o600, 0o600)
    assert made.split("_", 1)[1] not in keys.read_text()
    tenant = Tenants.read(keys).identify(f"Bearer {made}")
    assert tenant.tenant_id == "development"
    assert Tenants.read(keys).identify(f"bearer {made}") == tenant


@pytest.mark.parametrize("change", [lambda k: k + "x", lambda k: k[:-1], lambda k: k.replace("sk-", "sk-0"), str.upper])
def test_a_key_that_is_nearly_right_is_refused(tmp_path: Path, change: object) -> None:
    make_development_keys(tmp_path / "keys", tmp_path / "key")
    assert callable(change)
    with pytest.raises(Unauthorized):
        Tenants.read(tmp_path / "keys").identify(f"Bearer {change((tmp_path / 'key').read_text())}")


def test_a_secret_does_not_print_itself() -> None:
    secret = Secret("hunter2")
    for shown in (repr(secret), str(secret), f"{secret}", f"{secret:>9}", "%s" % secret, f"{[secret]}"):  # noqa: UP031
        assert "hunter2" not in shown
    assert secret.reveal() == "hunter2"
