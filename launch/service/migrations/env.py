"""What alembic runs, on the connection that `database.migrate` hands it, or on its own -x url=."""

import sqlalchemy as sa
from alembic import context

from launch.service.tables import metadata


def main() -> None:
    connection = context.config.attributes.get("connection")
    if connection is not None:
        migrate(connection)
        return
    url = context.get_x_argument(as_dictionary=True)["url"]  # for `alembic revision` by hand
    with sa.create_engine(url).begin() as opened:
        migrate(opened)


def migrate(connection: sa.Connection) -> None:
    """SQLite cannot alter most things: batches copy the table instead."""
    context.configure(connection, target_metadata=metadata, render_as_batch=True)
    with context.begin_transaction():
        context.run_migrations()


main()
