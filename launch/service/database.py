"""An address in; connections whose transactions are short and never half-granted out.

SQLite in its write-ahead mode, or PostgreSQL; both hold the tables of `tables.py`, brought up to
date when they are opened.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import alembic.command
import alembic.config
import sqlalchemy as sa
from sqlalchemy import event, exc

from core.errors import UserError
from launch.service import tables as t

Row = dict[str, Any]
PATIENCE = 30
"""Seconds that a writer waits for another."""


class Page(NamedTuple):
    """Part of a list, and whether there is more."""

    rows: list[Row]
    more: bool


class Database:
    """One database; safe to use from many threads."""

    def __init__(self, url: str):
        self.engine = _engine(url)

    @classmethod
    def open(cls, url: str) -> "Database":
        """Connect and bring the tables up to date; raises `UserError` where that cannot be."""
        try:
            database = cls(url)
            migrate(database.engine)
        except (exc.ArgumentError, exc.OperationalError, ImportError) as error:
            first = str(error).splitlines()[0]
            raise UserError(f"the database cannot be opened ({first}): check --db.") from error
        return database

    def close(self) -> None:
        self.engine.dispose()

    @contextmanager
    def read(self) -> Iterator[sa.Connection]:
        with self.engine.connect() as connection, connection.begin():
            yield connection

    @contextmanager
    def write(self) -> Iterator[sa.Connection]:
        """SQLite takes its one lock for writers at once, so that none is refused halfway."""
        with self.engine.connect().execution_options(writes=True) as connection:
            with connection.begin():
                yield connection

    def belongs(self, root: str) -> None:
        """Tie the database to one root folder; raises `UserError` if it is tied to another."""
        with self.write() as c:
            held = c.execute(sa.select(t.house.c.root)).scalar()
            if held is None:
                c.execute(t.house.insert().values(id=1, root=root))
            elif held != root:
                raise UserError(
                    "this database belongs to another root folder: name that one with --root, or "
                    "another database with --db."
                )


def migrate(engine: sa.Engine) -> None:
    """Bring the tables up to date, whatever version made them."""
    config = alembic.config.Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    with engine.connect().execution_options(writes=True) as connection:
        with connection.begin():
            config.attributes["connection"] = connection
            alembic.command.upgrade(config, "head")


def _engine(url: str) -> sa.Engine:
    parsed = sa.make_url(url)
    if parsed.get_backend_name() != "sqlite":
        return sa.create_engine(parsed, pool_size=10, max_overflow=20, pool_pre_ping=True)
    engine = sa.create_engine(parsed, pool_size=10, max_overflow=40)

    @event.listens_for(engine, "connect")
    def prepare(connection: Any, record: Any) -> None:
        connection.isolation_level = None  # we say BEGIN ourselves, below
        for setting in (
            "journal_mode = WAL",
            "synchronous = FULL",  # what was acknowledged survives a power loss
            f"busy_timeout = {PATIENCE * 1000}",
            "foreign_keys = ON",
        ):
            connection.execute(f"PRAGMA {setting}")

    @event.listens_for(engine, "begin")
    def begin(connection: sa.Connection) -> None:
        writes = connection.get_execution_options().get("writes")
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

    return engine


def without_password(url: str) -> str:
    """The address as it may be shown; the password goes into PGPASSWORD."""
    return sa.make_url(url).set(password=None).render_as_string()


def rows(result: sa.CursorResult[Any]) -> list[Row]:
    found: Any = result.mappings()
    return [dict(row) for row in found]


def first(result: sa.CursorResult[Any]) -> Row | None:
    return next(iter(rows(result)), None)


def page(c: sa.Connection, table: sa.Table, chosen: Any, after: str | None, limit: int) -> Page:
    """Newest first; what comes after a name that is none is nothing."""
    query = sa.select(table).where(chosen)
    if after is not None:
        query = query.where(table.c.seq < _seq(table, after))
    found = rows(c.execute(query.order_by(table.c.seq.desc()).limit(limit + 1)))
    return Page(found[:limit], len(found) > limit)


def event_number(event_id: str) -> int:
    """The place of an event in its list; 0, before all, where the name is none of ours."""
    number = event_id.removeprefix("ftevent-")
    return int(number) if number.isascii() and number.isdigit() and len(number) < 19 else 0


def _seq(table: sa.Table, name: str) -> Any:
    if table is t.events:
        return event_number(name)
    known = sa.select(table.c.seq).where(table.c.id == name).scalar_subquery()
    return sa.func.coalesce(known, 0)
