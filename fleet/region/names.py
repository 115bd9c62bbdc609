"""Names of the actors, the same for all who look them up."""

NAMESPACE = "fleet"
HEAD = "node:__internal_head__"  # Ray's resource that only the head node has
MANAGER_PREFIX = "region:"


def manager_name(region: str) -> str:
    return f"{MANAGER_PREFIX}{region}"


def agent_prefix(region: str) -> str:
    return f"agent:{region}:"


def agent_name(region: str, node_class: str, mark: int | str) -> str:
    """`mark` tells the agents of a class apart."""
    return f"{agent_prefix(region)}{node_class}:{mark}"


def class_of_agent(name: str) -> str:
    return name.split(":")[2]


def host_name(region: str, number: int) -> str:
    """A process of simulated nodes."""
    return f"simulated:{region}:{number}"
