"""The launcher in front of HAProxy, over the template of the Ray that is installed."""

from __future__ import annotations

import json
import re
from importlib.metadata import distribution
from pathlib import Path

import pytest

from serve.deploy.haproxy import HEADER_TIMEOUT_S, HOST, PER_ADDRESS, PORT, TemplateChanged, error_files, harden

ENVIRONMENT = {HOST: "127.0.0.1", PORT: "8000", HEADER_TIMEOUT_S: "10", PER_ADDRESS: "64"}
GENERATED = """global
    stats socket /s/admin.sock mode 666 level admin expose-fd listeners
defaults
    option splice-request
    option splice-response
    errorfile 502 /ray/500.http
    errorfile 503 /ray/500.http
    errorfile 504 /ray/500.http
frontend prometheus
    bind :9101
frontend http_frontend
    bind *:8000
backend default_backend
    http-request return status 404
listen stats
  bind *:8404
"""


def test_every_open_door_is_closed() -> None:
    hardened = harden(GENERATED, ENVIRONMENT, Path("/f"))
    binds = re.findall(r"bind (\S+)", hardened)
    assert binds == ["127.0.0.1:9101", "127.0.0.1:8000", "127.0.0.1:8404"]
    assert "mode 600" in hardened
    assert "timeout http-request 10s" in hardened
    assert "sc0_conn_cur gt 64" in hardened
    assert "splice-request" not in hardened
    for header in ("x-request-disconnect-disabled", "x-request-timeout-seconds", "serve_multiplexed_model_id"):
        assert f"del-header {header}" in hardened


def test_the_edge_opens_only_when_asked() -> None:
    opened = harden(GENERATED, {**ENVIRONMENT, HOST: "0.0.0.0"}, Path("/f"))
    assert re.findall(r"bind (\S+)", opened) == ["127.0.0.1:9101", "0.0.0.0:8000", "127.0.0.1:8404"]


@pytest.mark.parametrize("line", [line for line in GENERATED.splitlines() if ":" in line or "file" in line])
def test_a_template_that_changed_is_refused(line: str) -> None:
    with pytest.raises(TemplateChanged):
        harden(GENERATED.replace(line, "    # gone", 1), ENVIRONMENT, Path("/f"))


def test_a_new_bind_in_the_template_is_refused() -> None:
    with pytest.raises(TemplateChanged, match="more than we know"):
        harden(GENERATED + "frontend new\n    bind *:9999\n", ENVIRONMENT, Path("/f"))


def test_the_installed_template_still_has_the_lines_that_we_replace() -> None:
    # Read, not imported: Ray's own import warns.
    template = Path(str(distribution("ray").locate_file("ray/serve/_private/haproxy_templates.py"))).read_text()
    for words in ("mode 666 level admin", "option splice-request", "frontend prometheus", "listen stats"):
        assert words in template


def test_the_edges_own_errors_have_openais_shape() -> None:
    for name, content in error_files().items():
        body = content if name.endswith(".json") else content.split(b"\r\n\r\n", 1)[1]
        assert set(json.loads(body)["error"]) == {"message", "type", "param", "code"}
        if not name.endswith(".json"):
            assert f"Content-Length: {len(body)}".encode() in content
