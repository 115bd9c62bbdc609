"""Where a replica listens for calls of other deployments: on the cluster's address, not on every interface.

Serve opens that port for each replica, asks for Ray's token there, and has no setting for the address. The fleet has
one deployment and calls none, so only Serve's own fallback proxy, which is on the same machine, could come.
"""

from typing import Any

from ray._common.network_utils import build_address
from ray.serve._private import replica
from ray.util import get_node_ip_address

_EVERYWHERE = "[::]:"
_add_port: Any = replica.add_port_to_grpc_server


def keep_off_other_interfaces() -> None:
    """For this process; before Serve starts that server, which it does after a deployment's `__init__`."""
    replica.add_port_to_grpc_server = _add_private_port


def _add_private_port(server: Any, address: str) -> Any:
    if address.startswith(_EVERYWHERE):
        address = build_address(get_node_ip_address(), address.removeprefix(_EVERYWHERE))
    return _add_port(server, address)
