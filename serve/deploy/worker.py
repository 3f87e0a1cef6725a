"""What each Ray worker of an instance does before anything else starts in it."""

from __future__ import annotations

from uvicorn import config

from serve.deploy.loopback import bind_replicas


def set_up() -> None:
    bind_replicas()
    speak_http()


def speak_http() -> None:
    """Let Ray Serve's HTTP servers, which take uvicorn's defaults, read requests as ours do and upgrade to nothing."""
    config.HTTP_PROTOCOLS["auto"] = "serve.wire.protocol:HttpProtocol"
    config.WS_PROTOCOLS["auto"] = None
