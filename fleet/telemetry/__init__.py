"""How the fleet tells what it does: structured logs with request ids, and metrics for Prometheus."""
