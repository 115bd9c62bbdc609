"""Actors of which there is one, on the head, found by name: managers, keepers of lobbies, the counts of limits,
processes of simulated nodes."""

from typing import Any

from fleet.region.names import HEAD, NAMESPACE


def on_head(kind: Any, name: str, *arguments: Any, repeats: bool, **options: Any) -> Any:
    """The actor's handle; it is made if there is none, and lives on without its maker. `repeats`: Ray may send a call
    again after a crash."""
    made = kind.options(
        name=name,
        namespace=NAMESPACE,
        lifetime="detached",
        get_if_exists=True,
        max_restarts=-1,
        max_task_retries=-1 if repeats else 0,
        num_cpus=0,
        resources={HEAD: 0.001},
        **options,
    )
    return made.remote(*arguments)
