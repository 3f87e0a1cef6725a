"""What Ray's workers do first. That Ray Serve's servers are told by it is shown by tests/e2e/test_stack.py."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import uvicorn
from uvicorn import config

from serve.deploy.worker import speak_http
from serve.wire.protocol import HttpProtocol


@pytest.fixture
def uvicorns_defaults() -> Iterator[None]:
    """As they were, afterwards: other tests of this process start servers too."""
    http, ws = dict(config.HTTP_PROTOCOLS), dict(config.WS_PROTOCOLS)
    yield
    config.HTTP_PROTOCOLS.update(http)
    config.WS_PROTOCOLS.update(ws)


@pytest.mark.usefixtures("uvicorns_defaults")
def test_a_server_that_takes_uvicorns_defaults_reads_http_as_ours_do() -> None:
    speak_http()
    loaded = uvicorn.Config("serve.admin:build_admin")
    loaded.load()
    assert loaded.http_protocol_class is HttpProtocol
    assert loaded.ws_protocol_class is None
