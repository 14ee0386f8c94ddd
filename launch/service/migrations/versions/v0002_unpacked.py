"""What an archive takes unpacked counts for its owner's room."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    more = sa.Column("unpacked", sa.BigInteger(), server_default="0", nullable=False)
    op.add_column("files", more)
