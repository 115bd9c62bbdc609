"""Whether the head knows this machine's part of Ray.

A raylet is meant to end itself once the head has given it up or has been replaced. One whose machine's clock was set
back, or that was cut off at the wrong moment, misses that: it lives on, and belongs to no cluster. Only the head can
tell, so it is asked, by Ray's own protocol and without a client of Ray's, which ends its process when the head is away.
"""

import threading
from pathlib import Path
from typing import Any

import structlog

log = structlog.get_logger(__name__)
ANSWER_S = 5.0
# The deadline of a call goes by the machine's clock, which may be set back meanwhile.
GIVE_UP_S = 10.0


def is_known(address: str, token: str, sockets: Path) -> bool | None:
    """Whether the head at that address counts a raylet with its sockets below that folder as alive. None: it does not
    answer within 10 s, which says nothing."""
    found: list[bool] = []

    def ask() -> None:
        found.extend(_ask(address, token, sockets))

    asker = threading.Thread(target=ask, name="membership", daemon=True)
    asker.start()
    asker.join(GIVE_UP_S)
    return found[0] if found else None


def _ask(address: str, token: str, sockets: Path) -> list[bool]:
    import grpc
    from ray.core.generated import gcs_pb2, gcs_service_pb2, gcs_service_pb2_grpc

    messages: Any = gcs_service_pb2
    parts: Any = gcs_pb2
    grpc_: Any = grpc
    try:
        with grpc_.insecure_channel(address) as channel:
            stub: Any = gcs_service_pb2_grpc.NodeInfoGcsServiceStub(channel)
            told: Any = stub.GetAllNodeInfo(
                messages.GetAllNodeInfoRequest(),
                timeout=ANSWER_S,
                metadata=(("authorization", f"Bearer {token}"),),
            )
    except grpc_.RpcError as error:
        log.debug("head_not_asked", error=str(error))
        return []
    names: list[str] = [one.raylet_socket_name for one in told.node_info_list if one.state == parts.GcsNodeInfo.ALIVE]
    return [any(name.startswith(f"{sockets}/") for name in names)]
