"""journals may grow beyond 2^31 entries"""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    _change(sa.BigInteger())


def downgrade() -> None:
    _change(sa.Integer())


def _change(kind: sa.types.TypeEngine[int]) -> None:
    if op.get_bind().dialect.name == "sqlite":  # has 64 bits there already
        return
    for table in ("serverevent", "buildlog"):
        op.alter_column(table, "id", type_=kind)
