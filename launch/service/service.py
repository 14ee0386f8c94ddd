"""A root folder and a database in; all parts of the service, made and wired, out."""

import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from core.errors import UserError
from core.storage import lock_file, write_atomic
from launch.launchers import LAUNCHERS
from launch.launchers.ray import Ray
from launch.launchers.slurm import Slurm
from launch.service import scoring
from launch.service.bell import Bell
from launch.service.checker import Checker
from launch.service.database import Database
from launch.service.dispatch import Dispatcher
from launch.service.metrics import Metrics
from launch.service.requests import Requests
from launch.service.retention import Retention
from launch.service.scoring import Scoring
from launch.service.shelf import Files
from launch.service.store import Jobs
from launch.service.supervise import Supervisor
from launch.service.tokens import Tokens


@dataclass(frozen=True)
class Limits:
    """What one owner, or one request, may take."""

    upload: int = 4 << 30
    """Bytes of a file."""
    quota: int = 64 << 30
    """Bytes of an owner's files."""


@dataclass(frozen=True)
class Plan:
    """What the operator decides, beside the address to listen at."""

    root: Path
    db: str
    launcher: str = "local"
    slots: int = 1
    devices: tuple[str, ...] = ()
    models: Mapping[str, Path] = field(default_factory=dict)
    hub: bool = False
    slurm: Mapping[str, str] = field(default_factory=dict)
    """Options of the jobs that trainers are there."""
    ray: Mapping[str, str] = field(default_factory=dict)
    """Where Ray is, and what a trainer takes there."""
    layout: Mapping[str, Any] = field(default_factory=dict)
    """Of the processes of a training, as accelerate has it; empty: one."""
    keep_days: float | None = None
    """For which run folders of jobs that have ended stay; None: for ever."""
    limits: Limits = Limits()


class Service:
    """One process's hold on a root folder; `begin` and `end` are called once."""

    def __init__(self, plan: Plan):
        """Raises `UserError` where the folder is in use or cannot be."""
        root = prepared(plan.root)
        busy = f"another service runs on {root}; stop it, or choose another --root."
        self.lock = lock_file(root / "service.lock", busy)
        self.plan = plan
        self.database = Database.open(plan.db)
        self.database.belongs(identity(root))
        self.bell = Bell()
        self.jobs = Jobs(self.database)
        self.metrics = Metrics(self.jobs, plan.slots)
        self.files = Files(self.database, root, plan.limits.quota)
        self.tokens = Tokens(self.database)
        self.checker = Checker(offline=not plan.hub)
        self.unpacker = Checker()  # apart: a large archive must not hold up a question
        self.scoring = Scoring(Checker(offline=True, module=scoring.__name__))
        self.requests = Requests(self.jobs, self.files, self.checker, root, plan.models, plan.hub)
        self.supervisor = Supervisor(
            self.jobs,
            self.files,
            self.unpacker,
            {name: make() for name, make in LAUNCHERS.items()}
            | {"slurm": Slurm(plan.slurm), "ray": Ray(plan.ray)},
            plan.launcher,
            root,
            self.bell,
            plan.slots,
            plan.devices,
            {} if plan.hub else {"HF_HUB_OFFLINE": "1"},
            plan.layout,
        )
        self.dispatcher = Dispatcher(plan.db, self.supervisor.do)
        self.retention = Retention(self.database, root, self.dispatcher.prune, plan.keep_days)
        self.root = root
        self.stopping = False

    def begin(self) -> None:
        """Take up all jobs where they are, and go on."""
        self.files.sweep()
        self.supervisor.put, self.supervisor.waiting = self.dispatcher.put, self.dispatcher.waiting
        self.supervisor.rest = self.dispatcher.rest
        self.dispatcher.start()
        self.supervisor.begin()
        self.retention.begin()

    def leave(self) -> None:
        """Heard a signal: streams end, and nobody waits for an answer any longer."""
        self.stopping = True
        self.bell.ring_all()
        self.checker.close()
        self.scoring.close()

    def end(self) -> None:
        """Trainers go on; whoever opens the root next takes them up."""
        self.stopping = True
        self.retention.stop()
        self.supervisor.stop()
        self.dispatcher.stop()
        self.checker.close()
        self.unpacker.close()
        self.scoring.close()
        self.database.close()
        self.lock.close()


def prepared(root: Path) -> Path:
    root = root.expanduser().resolve()
    try:
        for folder in (root, root / "jobs"):
            folder.mkdir(parents=True, exist_ok=True)
        root.chmod(0o700)  # data and databases of all owners
    except OSError as error:
        raise UserError(f"cannot make {root} ({error.strerror}): choose another --root.") from error
    return root


def identity(root: Path) -> str:
    """Random bits that tie the folder to its database."""
    path = identity_path(root)
    if not path.exists():
        write_atomic(path, secrets.token_hex(16).encode())
    return path.read_text().strip()


def identity_path(root: Path) -> Path:
    return root / "root.id"


def default_db(root: Path) -> str:
    return f"sqlite:///{root.expanduser().resolve()}/jobs.sqlite"
