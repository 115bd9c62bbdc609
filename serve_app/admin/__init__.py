"""The operator's API, `/api/admin/v1`: projects, their plans and keys, and the audit log."""
