"""TLS certificates: the operator's own, or those of a development CA."""
