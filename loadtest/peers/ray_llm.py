"""Ray Serve LLM in front of one model on the CPU, in the foreground: the first of the peers that we measure.

    .venv-peers/ray-llm/bin/python loadtest/peers/ray_llm.py FOLDER PORT [--direct] [--interval-ms N]

Prints `ready` once a completion has come back; everything else goes to stderr. Two processes, as in `starserve up`:
the parent is the subreaper of everything below and ends it; the child holds Ray. SIGTERM or SIGINT leave nothing
behind: no process, no folder, no shared memory.

HAProxy's statistics and some of Ray's ports listen on all interfaces, because Ray's templates leave no choice.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any

import psutil

# A small engine on one core, where nothing else is given.
ENGINE: dict[str, Any] = {
    "dtype": "float32", "enforce_eager": True, "max_model_len": 2048, "max_num_seqs": 64,
    "kv_cache_memory_bytes": 1 << 28,
}  # fmt: skip
DEFAULTS = {
    "VLLM_TARGET_DEVICE": "cpu", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": "1",
    "TORCHDYNAMO_DISABLE": "1", "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "VLLM_LOGGING_LEVEL": "WARNING",
}  # fmt: skip
DIRECT = {
    "RAY_SERVE_ENABLE_HA_PROXY": "1", "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
    "RAY_SERVE_LLM_ENABLE_DIRECT_STREAMING": "1",
}  # fmt: skip
PRIVATE_PORTS = 200
TRACKERS_WITHIN_S = 10.0
_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36


def main() -> int:
    given = _parser().parse_args()
    if given.drive:
        _drive(given)
        return 0
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    signals: list[int] = []
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda n, _: signals.append(n))
    folder = Path(tempfile.mkdtemp(prefix="peer-"))
    try:
        with _claim_ports() as claim:
            low = claim.getsockname()[1] - PRIVATE_PORTS + 1
            driver = subprocess.Popen(
                [sys.executable, __file__, *sys.argv[1:], "--drive", str(folder)],
                env={**DEFAULTS, **os.environ, **_environment(folder, low), **(DIRECT if given.direct else {})},
                stdin=subprocess.DEVNULL,
                stdout=sys.stderr,
                start_new_session=True,  # a terminal's Ctrl-C is for the parent
            )
            ready = False
            while driver.poll() is None and not signals:
                if not ready and _answers(given):
                    ready = True
                    print("ready", flush=True)
                time.sleep(0.25)
    finally:
        _end_below()
        shutil.rmtree(folder, ignore_errors=True)
    return 0 if signals else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Ray Serve LLM in front of one model on the CPU.")
    parser.add_argument("folder", type=Path, help="of the model")
    parser.add_argument("port", type=int, help="on loopback")
    parser.add_argument("--name", help="of the model, for clients; else the folder's")
    parser.add_argument("--direct", action="store_true", help="HAProxy, optimised for throughput, direct streaming")
    parser.add_argument("--interval-ms", type=float, help="stream_batching_interval_ms; else 50; moot with --direct")
    parser.add_argument("--engine", type=json.loads, default={}, help="JSON, over our engine settings")
    parser.add_argument("--drive", type=Path, help=argparse.SUPPRESS)
    return parser


def _name(given: argparse.Namespace) -> str:
    return str(given.name or given.folder.resolve().name)


def _environment(folder: Path, low: int) -> dict[str, str]:
    """What Ray, Serve and HAProxy read when they are imported or started. Private ports begin at `low`."""
    temporary, proxy = folder / "t", folder / "p"
    for made in (temporary, proxy):
        made.mkdir(mode=0o700)
    token = folder / "token"
    token.write_text(secrets.token_hex(32))
    return {
        "TMPDIR": str(temporary), "VLLM_RPC_BASE_PATH": str(temporary), "RAYLLM_HOME_DIR": str(folder / "llm"),
        "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token), "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # Ray's own parts bind loopback
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(proxy / "haproxy.cfg"),
        "RAY_SERVE_HAPROXY_SOCKET_PATH": str(proxy / "admin.sock"),
        "RAY_SERVE_HAPROXY_LOG_TARGET": str(proxy / "log.sock"),
        "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": str(proxy / "metrics.sock"),
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(proxy),
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(proxy / "server-state"),
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "1",
        "RAY_SERVE_DIRECT_INGRESS_MIN_HTTP_PORT": str(low), "RAY_SERVE_DIRECT_INGRESS_MAX_HTTP_PORT": str(low + 90),
        "RAY_SERVE_DIRECT_INGRESS_MIN_GRPC_PORT": str(low + 91),
        "RAY_SERVE_DIRECT_INGRESS_MAX_GRPC_PORT": str(low + 190),
        "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": str(low + 191), "RAY_SERVE_FALLBACK_PROXY_GRPC_PORT": str(low + 192),
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(low + 193), "RAY_SERVE_HAPROXY_STATS_PORT": str(low + 194),
        "PEER_METRICS_PORT": str(low + 195),
    }  # fmt: skip


def _drive(given: argparse.Namespace) -> None:
    """The child: Ray and the application, until it is killed, or told to stop because the parent was killed."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    # Imported here: Ray reads the environment when it is imported.
    import ray
    from ray import serve
    from ray.serve.llm import LLMConfig, build_openai_app

    ray.init(
        address="local", num_cpus=max(os.cpu_count() or 1, 8), object_store_memory=128 << 20,
        include_dashboard=False, log_to_driver=False, logging_level="warning",
        _metrics_export_port=int(os.environ["PEER_METRICS_PORT"]), _temp_dir=str(given.drive / "ray"),
        _node_ip_address="127.0.0.1",
    )  # fmt: skip
    stop: list[int] = []
    signal.signal(signal.SIGTERM, lambda n, _: stop.append(n))  # after Ray, which puts its own
    serve.start(http_options={"host": "127.0.0.1", "port": given.port})
    interval = {} if given.interval_ms is None else {"stream_batching_interval_ms": given.interval_ms}
    config = LLMConfig(
        model_loading_config={"model_id": _name(given), "model_source": str(given.folder.resolve())},
        accelerator_config={"kind": "cpu"},
        placement_group_config={"bundles": [{"CPU": 1}]},
        deployment_config={"num_replicas": 1},
        engine_kwargs=ENGINE | given.engine,
        experimental_configs=interval,
    )
    application = build_openai_app({"llm_configs": [config]})
    serve.run(application, route_prefix="/", logging_config={"enable_access_log": False})
    while not stop:
        time.sleep(0.1)
    ray.shutdown()


def _answers(given: argparse.Namespace) -> bool:
    body = json.dumps({"model": _name(given), "prompt": "x", "max_tokens": 1}).encode()
    address = f"http://127.0.0.1:{given.port}/v1/completions"
    request = urllib.request.Request(address, body, {"Content-Type": "application/json"})
    try:
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=5) as answer:
            return bool(json.load(answer)["choices"])
    except (OSError, ValueError, KeyError):
        return False


def _claim_ports() -> socket.socket:
    """Neighbouring free ports, up to the returned socket's own, which holds the claim."""
    taken = {c.laddr.port for c in psutil.net_connections("tcp") if c.status == psutil.CONN_LISTEN and c.laddr}
    for low in range(20_000, 32_000, PRIVATE_PORTS):
        if not taken & set(range(low, low + PRIVATE_PORTS)):
            claim = socket.socket()
            try:
                claim.bind(("127.0.0.1", low + PRIVATE_PORTS - 1))
                claim.listen(1)
            except OSError:
                claim.close()
                continue
            return claim
    raise SystemExit(f"no {PRIVATE_PORTS} neighbouring free ports between 20000 and 32000")


def _end_below() -> None:
    """Kill all descendants, without asking Ray: its raylet would kill Python's resource trackers with the workers,
    and these unlink what the workers leave in /dev/shm. The raylet comes first, because parents do.
    """
    deadline = time.monotonic() + TRACKERS_WITHIN_S
    while left := psutil.Process().children(recursive=True):
        trackers = [p for p in left if _is_tracker(p)]
        if len(trackers) == len(left) and time.monotonic() < deadline:
            psutil.wait_procs(trackers, timeout=0.1)
            continue
        ended = [p for p in left if p not in trackers] or trackers
        for process in ended:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(ended, timeout=5)


def _is_tracker(process: psutil.Process) -> bool:
    try:
        return any("multiprocessing.resource_tracker" in word for word in process.cmdline())
    except psutil.Error:
        return False


if __name__ == "__main__":
    sys.exit(main())
