"""Whoever may ask: tokens of 256 random bits, of which only a digest is kept."""

import hashlib
import secrets
import time
from typing import NamedTuple

import sqlalchemy as sa

from core.errors import UserError
from launch.service import tables as t
from launch.service.database import Database, Row, first, rows

PREFIX = "dd_"
"""By which people and scanners of repositories know a token of ours."""
SCOPES = ("read", "write")
"""`read` looks at jobs and files; `write` makes, changes and removes them."""


class Caller(NamedTuple):
    """On whose behalf a request is."""

    owner: str
    scopes: frozenset[str]


LOCAL = Caller("local", frozenset(SCOPES))
"""Whoever sits at this machine, while no token was ever made."""


class Tokens:
    """The rows of all tokens. A token itself is seen once: by whoever has it made."""

    def __init__(self, database: Database):
        self.read, self.write = database.read, database.write

    def create(self, owner: str, scopes: tuple[str, ...], days: float | None) -> tuple[str, str]:
        """Its id, and the token."""
        unknown = sorted(set(scopes) - set(SCOPES))
        if unknown or not scopes:
            raise UserError(f"scopes are {' and '.join(SCOPES)}: not {', '.join(unknown)}.")
        token, now = PREFIX + secrets.token_urlsafe(32), time.time()
        row = {
            "id": f"token-{secrets.token_hex(8)}",
            "digest": digest(token),
            "owner": owner,
            "scopes": sorted(scopes),
            "created_at": now,
            "expires_at": None if days is None else now + days * 86400,
        }
        with self.write() as c:
            c.execute(t.tokens.insert().values(**row))
        return row["id"], token

    def caller(self, token: str) -> Caller | None:
        """Whose it is; None for one that is unknown, revoked or expired."""
        with self.read() as c:
            query = sa.select(t.tokens).where(t.tokens.c.digest == digest(token))
            row = first(c.execute(query))
        if row is None or row["revoked_at"] is not None:
            return None
        if row["expires_at"] is not None and row["expires_at"] <= time.time():
            return None
        return Caller(row["owner"], frozenset(row["scopes"]))

    def any(self) -> bool:
        """Whether one was ever made: revoking the last must not open the door."""
        with self.read() as c:
            return c.execute(sa.select(t.tokens.c.id).limit(1)).first() is not None

    def all(self) -> list[Row]:
        with self.read() as c:
            return rows(c.execute(sa.select(t.tokens).order_by(t.tokens.c.created_at)))

    def revoke(self, token_id: str) -> bool:
        """False where there is none, or it was revoked before."""
        chosen = t.tokens.c.id == token_id, t.tokens.c.revoked_at.is_(None)
        with self.write() as c:
            done = c.execute(t.tokens.update().where(*chosen).values(revoked_at=time.time()))
        return bool(done.rowcount)


def digest(token: str) -> str:
    """Random bits need no slow hash: there is nothing to guess."""
    return hashlib.sha256(token.encode()).hexdigest()
