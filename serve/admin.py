"""The admin API's app, joined here: its routes, its credential, errors in OpenAI's shape."""

from __future__ import annotations

from fastapi import FastAPI

from serve.tenants.store import Store
from serve.wire.admin import AdminApi, Credential
from serve.wire.api import install_errors
from serve.wire.middleware import RequestIds
from serve.wire.usage import UsageOf
from serve.words import Secret


def build_admin(store: Store, token: Secret, usage_of: UsageOf | None = None, currency: str = "USD") -> FastAPI:
    """`token`: whoever sends it may do everything. No key of a tenant opens anything here."""
    app = FastAPI(title="starserve admin", docs_url=None, redoc_url=None, openapi_url=None, redirect_slashes=False)
    app.include_router(AdminApi(store, usage_of, currency).router())
    install_errors(app)
    app.add_middleware(Credential, token=token)
    app.add_middleware(RequestIds, echo=True)
    return app
