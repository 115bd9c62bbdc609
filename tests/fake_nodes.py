"""Ray's fake nodes, kept on the loopback: the provider that Ray's autoscaler loads in `test_autoscaler.py`."""

from typing import Any

import ray.util
from ray.autoscaler._private.fake_multi_node.node_provider import FakeMultiNodeProvider

# As fleets on one machine do: Ray replaces 127.0.0.1 by the network card's address.
NODE_ADDRESS = "127.0.0.2"


def _loopback(*_: Any) -> str:
    return NODE_ADDRESS


class LoopbackNodes(FakeMultiNodeProvider):
    """Its nodes would listen on the network card's address."""

    def _create_node_with_resources_and_labels(self, *arguments: Any, **named: Any) -> Any:
        ray.util.get_node_ip_address = _loopback
        return super()._create_node_with_resources_and_labels(*arguments, **named)
