"""An empty handler on Ray Serve, beside the fleet's API and in the same mode: `python bench/empty_app.py up|down N`.

Needs the environment of the fleet's head (RAY_ADDRESS and its token); `bench/api.py` gives it.
"""

import logging
import sys

import ray
from fastapi import FastAPI
from ray import serve
from starlette.responses import Response

NAME, PREFIX = "bench-empty", "/bench-empty"


@serve.deployment(
    name="empty",
    max_ongoing_requests=2000,
    ray_actor_options={"num_cpus": 0},
    logging_config={"enable_access_log": False},
)
@serve.ingress()
class Empty:
    def __serve_build_asgi_app__(self) -> FastAPI:
        app = FastAPI(openapi_url=None)

        @app.get("/")
        async def empty() -> Response:
            return Response(b"{}", media_type="application/json")

        return app


if __name__ == "__main__":
    ray.init(namespace="serve", log_to_driver=False, logging_level=logging.WARNING)
    if sys.argv[1] == "up":
        replicas = int(sys.argv[2])
        serve.run(Empty.options(num_replicas=replicas).bind(), name=NAME, route_prefix=PREFIX)
    else:
        serve.delete(NAME)
