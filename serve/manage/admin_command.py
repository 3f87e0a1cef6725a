"""`starserve admin`: the admin API of a deployment, in a process of its own. Words only."""

from __future__ import annotations

import secrets
from functools import partial
from typing import Any

import uvicorn

from serve.admin import build_admin
from serve.database import open_database
from serve.ledger.usage import usage
from serve.manage.opening import Config, ConfigToo, opened
from serve.manage.telling import refuse, say
from serve.tenants.development import make_secret
from serve.wire.protocol import HttpProtocol


def admin(other: ConfigToo, config: Config) -> None:
    """Serve the admin API on `admin.port`, in the foreground. Its token is made at the first start (0600)."""
    with opened(config, other=other, makes=True) as (meant, store):
        settings = meant.settings
        if settings.admin.port is None:
            refuse("admin.port: without one there is no admin API; name a port of its own")
        if settings.admin.port == settings.http.port:
            refuse("admin.port: is the public port; name another")
        token_file = settings.admin.token_file or meant.folder / "admin.token"
        token = make_secret(token_file, f"admin-{secrets.token_hex(32)}")
        ledger = open_database(settings.database.url_in(meant.folder))
        app = build_admin(store, token, partial(usage, ledger), settings.currency)
        say(f"admin API on http://{settings.admin.host}:{settings.admin.port}/admin/v1, its token in {token_file}")
        try:
            where: dict[str, Any] = {"host": settings.admin.host, "port": settings.admin.port}
            uvicorn.run(app, **where, http=HttpProtocol, ws="none", log_level="warning", access_log=False)
        finally:
            ledger.dispose()
