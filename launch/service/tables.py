"""The tables that are the truth about jobs, in SQLAlchemy's terms.

A change here needs a migration beside it (`migrations/versions`); a test holds the two together.
"""

import sqlalchemy as sa

metadata = sa.MetaData(
    naming_convention={
        "ix": "ix_%(column_0_label)s",
        "uq": "uq_%(table_name)s_%(column_0_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
        "pk": "pk_%(table_name)s",
    }
)
WIDE = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
"""SQLite counts up only what it calls INTEGER."""


def _text(name: str, length: int, **options: object) -> sa.Column:
    return sa.Column(name, sa.String(length), nullable=bool(options.pop("empty", False)), **options)  # pyright: ignore


house = sa.Table(
    "house",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),  # one row, which a choice of slot also locks
    _text("root", 64),  # the folder that belongs to this database
)

jobs = sa.Table(
    "jobs",
    metadata,
    sa.Column("seq", WIDE, primary_key=True, autoincrement=True),
    _text("id", 64, unique=True),
    _text("owner", 64),
    sa.Column("created_at", sa.Float, nullable=False),
    sa.Column("finished_at", sa.Float),
    sa.Column("removed_at", sa.Float),  # when its folder was given up (service.retention)
    _text("method", 64),
    _text("model", 256),
    _text("training_file", 256, empty=True),
    _text("validation_file", 256, empty=True),
    _text("suffix", 64, empty=True),
    sa.Column("seed", sa.BigInteger, nullable=False),
    sa.Column("metadata", sa.JSON, nullable=False),
    sa.Column("asked", sa.JSON, nullable=False),  # the settings in the caller's words
    sa.Column("shown", sa.JSON, nullable=False),  # the same, complete
    sa.Column("settings", sa.JSON, nullable=False),  # the same with paths: what runs
    sa.Column("uses", sa.JSON, nullable=False),  # ids of the files that they name
    # the standing (states.Standing), changed by compare-and-set only
    _text("state", 32, index=True),
    sa.Column("attempt", sa.Integer, nullable=False),
    sa.Column("silent", sa.Integer, nullable=False),
    sa.Column("pausing", sa.Boolean, nullable=False),
    sa.Column("error", sa.JSON),  # {code, message, param}
    # how far the run folder has been read
    sa.Column("step", WIDE),  # of the newest figures
    sa.Column("total", WIDE),  # steps asked for, where the method counts any
    sa.Column("finish_at", sa.Float),  # by the pace of the newest figures
    sa.Column("events_read", sa.BigInteger, nullable=False),  # bytes of events.jsonl
    sa.Index("ix_jobs_owner_seq", "owner", "seq"),
)

attempts = sa.Table(
    "attempts",
    metadata,
    _text("job_id", 64, primary_key=True),
    sa.Column("number", sa.Integer, primary_key=True),
    _text("launcher", 32),
    sa.Column("slot", sa.Integer, nullable=False),
    _text("handle", 256, empty=True),  # the launcher's name for it; NULL until it is submitted
    sa.Column("begun_at", sa.Float, nullable=False),
    sa.Column("stop_at", sa.Float),  # when it was asked to stop
    sa.Column("ended_at", sa.Float, index=True),  # NULL: it holds its slot
    sa.Column("outcome", sa.JSON),
    sa.ForeignKeyConstraint(["job_id"], ["jobs.id"]),
)

events = sa.Table(
    "events",
    metadata,
    sa.Column("seq", WIDE, primary_key=True, autoincrement=True),
    _text("job_id", 64),
    sa.Column("created_at", sa.Float, nullable=False),
    _text("level", 16),
    _text("type", 16),
    sa.Column("message", sa.Text, nullable=False),
    sa.Column("data", sa.JSON, nullable=False),
    sa.ForeignKeyConstraint(["job_id"], ["jobs.id"]),
    sa.Index("ix_events_job_id_seq", "job_id", "seq"),
)

checkpoints = sa.Table(
    "checkpoints",
    metadata,
    _text("job_id", 64, primary_key=True),
    sa.Column("step", WIDE, primary_key=True),
    sa.Column("created_at", sa.Float, nullable=False),
    sa.Column("metrics", sa.JSON, nullable=False),
    sa.ForeignKeyConstraint(["job_id"], ["jobs.id"]),
)

files = sa.Table(
    "files",
    metadata,
    sa.Column("seq", WIDE, primary_key=True, autoincrement=True),
    _text("id", 64, unique=True),
    _text("owner", 64),
    _text("job_id", 64, empty=True, index=True),  # of the job whose result it is
    _text("filename", 256),
    _text("purpose", 64),
    sa.Column("bytes", sa.BigInteger, nullable=False),
    sa.Column("unpacked", sa.BigInteger, nullable=False, server_default="0"),  # bytes, of a .zip
    _text("sha256", 64),
    sa.Column("created_at", sa.Float, nullable=False),
    sa.Column("place", sa.Text, nullable=False),  # beneath the root
    sa.Index("ix_files_owner_seq", "owner", "seq"),
)

tokens = sa.Table(
    "tokens",
    metadata,
    _text("id", 64, primary_key=True),
    _text("digest", 64, unique=True),  # sha256; the token itself is nowhere
    _text("owner", 64),
    sa.Column("scopes", sa.JSON, nullable=False),
    sa.Column("created_at", sa.Float, nullable=False),
    sa.Column("expires_at", sa.Float),
    sa.Column("revoked_at", sa.Float),
)

idempotency = sa.Table(
    "idempotency",
    metadata,
    _text("owner", 64, primary_key=True),
    _text("key", 256, primary_key=True),
    _text("request", 64),  # sha256 of the body
    _text("job_id", 64),
    sa.Column("created_at", sa.Float, nullable=False),
    sa.ForeignKeyConstraint(["job_id"], ["jobs.id"]),
)
