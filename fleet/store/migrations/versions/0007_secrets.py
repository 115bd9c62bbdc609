"""secrets

Environment variables of projects and servers are sealed from here on; what is there is sealed now.
"""

from typing import Any

import sqlalchemy as sa
import sqlmodel
from alembic import context, op

from fleet.sealing import Variables
from fleet.settings import get_settings

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

_AT_ONCE = 500
_project = sa.table("project", sa.column("id", sa.String), sa.column("settings", sa.JSON(none_as_null=True)))
_server = sa.table("server", sa.column("instance_id", sa.String), sa.column("environment", sa.JSON(none_as_null=True)))


def upgrade() -> None:
    op.create_table(
        "secret",
        sa.Column("project_id", sqlmodel.sql.sqltypes.AutoString(), nullable=False),
        sa.Column("name", sqlmodel.sql.sqltypes.AutoString(), nullable=False),
        sa.Column("given_as", sqlmodel.sql.sqltypes.AutoString(), nullable=False),
        sa.Column("sealed", sqlmodel.sql.sqltypes.AutoString(), nullable=False),
        sa.Column("size", sa.Integer(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("updated_at", sa.BigInteger(), nullable=False),
        sa.Column("last_used_at", sa.BigInteger(), nullable=True),
        sa.ForeignKeyConstraint(["project_id"], ["project.id"]),
        sa.PrimaryKeyConstraint("project_id", "name"),
    )
    variables = Variables(context.config.attributes.get("home") or get_settings().home)
    _seal_projects(variables)
    _seal_servers(variables)


def _seal_projects(variables: Variables) -> None:
    for one in op.get_bind().execute(sa.select(_project)).all():
        found: Any = (one.settings or {}).get("environment_variables")
        if isinstance(found, dict):
            new = {**one.settings, "environment_variables": variables.seal(found)}
            op.execute(sa.update(_project).where(_project.c.id == one.id).values(settings=new))


def _seal_servers(variables: Variables) -> None:
    """In the order of the ids, some at a time: a history may be larger than memory."""
    bind, last = op.get_bind(), ""
    some = sa.select(_server).where(_server.c.environment.is_not(None)).order_by(_server.c.instance_id)
    while rows := bind.execute(some.where(_server.c.instance_id > last).limit(_AT_ONCE)).all():
        last = rows[-1].instance_id
        plain = [one for one in rows if isinstance(one.environment, dict)]
        if plain:
            values = [{"of": one.instance_id, "new": variables.seal(one.environment)} for one in plain]
            change = sa.update(_server).where(_server.c.instance_id == sa.bindparam("of"))
            bind.execute(change.values(environment=sa.bindparam("new", type_=_server.c.environment.type)), values)


def downgrade() -> None:
    """Plain again: what came before reads no seals."""
    variables = Variables(context.config.attributes.get("home") or get_settings().home)
    bind = op.get_bind()
    for one in bind.execute(sa.select(_project)).all():
        found: Any = (one.settings or {}).get("environment_variables")
        if isinstance(found, str):
            new = {**one.settings, "environment_variables": variables.open(found)}
            bind.execute(sa.update(_project).where(_project.c.id == one.id).values(settings=new))
    for one in bind.execute(sa.select(_server).where(_server.c.environment.is_not(None))).all():
        if isinstance(one.environment, str):
            plain = variables.open(one.environment)
            bind.execute(sa.update(_server).where(_server.c.instance_id == one.instance_id).values(environment=plain))
    op.drop_table("secret")
