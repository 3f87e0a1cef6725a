"""/docs: Swagger UI from files of an installed package, by relative addresses, so that it works offline and
behind any prefix. The page keeps no key once it is closed."""

from __future__ import annotations

from collections.abc import Callable
from importlib.resources import files
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import HTMLResponse, RedirectResponse
from starlette.staticfiles import StaticFiles

from serve.wire.bodies import BODIES
from serve.words import Form

ASSETS = "docs/assets"


def install_docs(app: FastAPI) -> None:
    page = get_swagger_ui_html(
        openapi_url="openapi.json",
        title="starserve",
        swagger_js_url=f"{ASSETS}/swagger-ui-bundle.js",
        swagger_css_url=f"{ASSETS}/swagger-ui.css",
        swagger_favicon_url=f"{ASSETS}/favicon-32x32.png",
        swagger_ui_parameters={"tryItOutEnabled": True, "persistAuthorization": False},
    )

    async def docs() -> HTMLResponse:
        return page

    async def root() -> RedirectResponse:
        return RedirectResponse("docs")

    app.mount(f"/{ASSETS}", StaticFiles(directory=str(files("fastapi_swagger") / "resources")))
    app.add_api_route("/docs", docs, include_in_schema=False, response_model=None)
    app.add_api_route("/", root, include_in_schema=False, response_model=None)
    app.openapi = _with_key(app.openapi)  # type: ignore[method-assign]


def _with_key(make: Callable[[], dict[str, Any]]) -> Callable[[], dict[str, Any]]:
    """Let the page ask for the API key."""

    def openapi() -> dict[str, Any]:
        schema = make()
        schema.setdefault("components", {})["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        return schema

    return openapi


def described(form: Form) -> dict[str, Any]:
    """The body of a form, for the page: FastAPI does not see it, because the corridor's own parser reads it."""
    schema = BODIES[form].model_json_schema(ref_template="#/components/schemas/{model}")
    defined = schema.pop("$defs", {})
    inline = _inlined(schema, defined)
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": inline}}},
            "security": [{"key": []}]}  # fmt: skip


def _inlined(node: Any, defined: dict[str, Any]) -> Any:
    if isinstance(node, dict):
        if "$ref" in node:
            return _inlined(defined[node["$ref"].rsplit("/", 1)[1]], defined)
        return {k: _inlined(v, defined) for k, v in node.items()}
    return [_inlined(v, defined) for v in node] if isinstance(node, list) else node
