"""Steps have 64 bits, as the settings that count them; SQLite's whole numbers always had."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    if op.get_bind().dialect.name == "sqlite":
        return
    for table, column in (("jobs", "step"), ("jobs", "total"), ("checkpoints", "step")):
        op.alter_column(table, column, type_=sa.BigInteger())
