"""Deploys a Serve config and waits until its applications run: `python -m fleet.ops.deploy <config.yaml>`.

A process of its own, so that the supervisor stays small and a stuck deployment can be killed. The cluster comes from
RAY_ADDRESS; the caller bounds the time. Exit code 1, with Serve's message on stderr, if an application failed.
"""

import logging
import os
import sys
import time

import ray
from ray import serve
from ray.serve.schema import ApplicationStatus
from ray.serve.scripts import cli as serve_cli

POLL_S = 0.1
# Serve says so also while it replaces replicas that have died, which takes long on a busy machine.
UNHEALTHY_S = 45.0


def deploy(config: str) -> None:
    ray.init(address=os.environ["RAY_ADDRESS"], namespace="serve", log_to_driver=False, logging_level=logging.WARNING)
    serve_cli.main(["run", config, "--non-blocking", "--address", os.environ["RAY_ADDRESS"]], standalone_mode=False)


def wait_running() -> str | None:
    """Wait for every application; None when all run, else Serve's message about the one that failed, or that has been
    unhealthy for `UNHEALTHY_S`."""
    unhealthy_since: float | None = None
    while True:
        applications = serve.status().applications
        failed = [app for app in applications.values() if app.status == ApplicationStatus.DEPLOY_FAILED]
        if failed:
            return failed[0].message
        unhealthy = [app for app in applications.values() if app.status == ApplicationStatus.UNHEALTHY]
        unhealthy_since = (unhealthy_since or time.monotonic()) if unhealthy else None
        if unhealthy_since is not None and time.monotonic() - unhealthy_since > UNHEALTHY_S:
            return unhealthy[0].message
        if applications and all(app.status == ApplicationStatus.RUNNING for app in applications.values()):
            return None
        time.sleep(POLL_S)


if __name__ == "__main__":
    deploy(sys.argv[1])
    failure = wait_running()
    if failure:
        sys.exit(failure)
