"""Keep the port on which a replica takes handle calls off the network.

Ray Serve 2.60 binds it to all interfaces ("[::]:0") and offers no setting, and whoever reaches it can call a
replica without a key. This hook runs in each Ray worker of a one-machine instance before any replica starts.
"""

from __future__ import annotations

from typing import Any

OPEN, LOOPBACK = "[::]:0", "127.0.0.1:0"


def bind_replicas() -> None:
    from ray.serve._private import replica

    bind = replica.add_port_to_grpc_server  # AttributeError: Ray has changed, and this file must be read again

    def bind_to_loopback(server: Any, address: str) -> Any:
        return bind(server, LOOPBACK if address == OPEN else address)

    replica.add_port_to_grpc_server = bind_to_loopback
