"""A PostgreSQL of Debian's package, in a folder of its own: started and stopped by the tests."""

import os
import shutil
import subprocess
import tempfile
from contextlib import contextmanager
from pathlib import Path

import sqlalchemy as sa

from launch.service.database import Database

USER = "diffdoctor"
MEMORY = Path("/dev/shm")
ROOM = 4 << 30
"""Bytes that are free in memory where its files lie there: a disk takes a minute to remove them."""
PROGRAMS = Path("/usr/lib/postgresql")
EMPTY = "empty"
"""The database whose tables are made once, which others are copies of."""


class Postgres:
    """Listens on a socket in its folder and nowhere else."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.made = 0

    def url(self, name: str) -> str:
        return f"postgresql+psycopg://{USER}@/{name}?host={self.folder}"

    def engine(self, name: str) -> sa.Engine:
        return sa.create_engine(self.url(name), isolation_level="AUTOCOMMIT")

    def run(self, statement: str) -> None:
        engine = self.engine("postgres")
        with engine.connect() as connection:
            connection.exec_driver_sql(statement)
        engine.dispose()

    def fresh(self, migrated: bool = True) -> str:
        """The address of a database that nobody has used yet."""
        self.made += 1
        name = f"test{self.made}"
        self.run(f"CREATE DATABASE {name}" + (f" TEMPLATE {EMPTY}" if migrated else ""))
        return self.url(name)


@contextmanager
def postgres():
    """A server, its data gone afterwards."""
    found = sorted(PROGRAMS.glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    assert found, "run `make test-system`, which installs PostgreSQL"
    programs = found[-1].parent
    memory = MEMORY if MEMORY.is_dir() and shutil.disk_usage(MEMORY).free > ROOM else None
    folder = Path(tempfile.mkdtemp(prefix="diffdoctor-pg-", dir=memory))  # a socket's path is short
    if os.getuid() == 0:
        shutil.chown(folder, "postgres", "postgres")
    data = folder / "data"
    options = f"-k {folder} -c listen_addresses='' -c fsync=off -c max_connections=200"
    call(programs / "initdb", "-D", data, "-A", "trust", "-U", USER, "--no-sync")
    call(programs / "pg_ctl", "-D", data, "-l", folder / "log", "-o", options, "-w", "start")
    try:
        server = Postgres(folder)
        server.run(f"CREATE DATABASE {EMPTY}")
        Database.open(server.url(EMPTY)).close()
        yield server
    finally:
        call(programs / "pg_ctl", "-D", data, "-m", "immediate", "-w", "stop")
        shutil.rmtree(folder)


def call(*words: object) -> None:
    """PostgreSQL refuses to run as root: then as the user that its package makes."""
    drop = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"]
    command = [*(drop if os.getuid() == 0 else []), *map(str, words)]
    done = subprocess.run(command, cwd="/", stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    assert done.returncode == 0, done.stderr.decode()
