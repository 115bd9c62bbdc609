"""Writes that carry an Idempotency-Key: one effect and one answer, whatever happens between them."""
