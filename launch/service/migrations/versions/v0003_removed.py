"""A folder that is being removed is known as such, so that no new job names it."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    op.add_column("jobs", sa.Column("removed_at", sa.Float()))
