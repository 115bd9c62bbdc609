"""history that may grow: indexes of what is live, of look-ups and of what is old"""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

_LIVE = sa.text("step != 'stopped'")
_STOPPED = sa.text("step = 'stopped'")
# name, table, columns, condition
_NEW = (
    ("server_live", "server", ["region"], _LIVE),
    ("server_live_project", "server", ["project_id"], _LIVE),
    ("server_ended", "server", ["project_id", "stopped_at"], _STOPPED),
    ("server_last_op", "server", ["project_id", "last_op"], sa.text("last_op IS NOT NULL")),
    ("server_claimed", "server", ["region", "pool_claimed_at"], sa.text("pool_claimed_at IS NOT NULL")),
    ("match_start_age", "matchstart", ["project_id", "created_at"], None),
    ("webhook_delivery_due", "webhookdelivery", ["webhook_id", "state", "next_at"], None),
    ("webhook_delivery_age", "webhookdelivery", ["project_id", "state", "updated_at"], None),
    ("match_status", "match", ["status", "project_id"], None),
    ("match_listing", "match", ["project_id", "status", "created_at"], None),
    ("player_rating_age", "playerrating", ["project_id", "updated_at"], None),
    ("build_age", "build", ["project_id", "status", "updated_at"], None),
)
_OLD = (
    ("server_live", "server", ["region", "step"]),
    ("server_build", "server", ["build_id", "step"]),
    ("webhook_delivery_due", "webhookdelivery", ["state", "next_at"]),
    ("match_shard_status", "match", ["shard", "status"]),
    ("match_listing", "match", ["project_id", "created_at"]),
)


def upgrade() -> None:
    for name, table, _columns in _OLD:
        op.drop_index(name, table_name=table)
    for name, table, columns, where in _NEW:
        op.create_index(name, table, columns, sqlite_where=where, postgresql_where=where)


def downgrade() -> None:
    for name, table, _columns, _where in _NEW:
        op.drop_index(name, table_name=table)
    for name, table, columns in _OLD:
        op.create_index(name, table, columns)
