"""What a request says of a job in; complete settings with real paths out, or a sentence.

No path comes from outside. Where a setting names a file, the request says one of
    file-...            a file that its owner uploaded
    ftjob-...           what a job of its owner made; ftjob-...:step-120 one of its checkpoints
    NAME                a model or data set that whoever runs the service named (--models)
    OWNER/NAME          a model of the hub, where that is switched on; OWNER/NAME@REVISION one of
                        its branches, tags or commits
"""

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from core.explain import unknown_name
from launch.methods import METHODS, Method
from launch.service.checker import Checker, Fault
from launch.service.shelf import Files
from launch.service.states import FINAL, State
from launch.service.store import Jobs

FILE = re.compile(r"file-[0-9a-f]{24}")
JOB = re.compile(r"(ftjob-[0-9a-f]{24})(?::step-(\d{1,12}))?")
NAMED = re.compile(r"^ft:.{0,130}:(?=ftjob-)")
"""What stands before the job's id in the name of a model that it made."""
TITLED = re.compile(r"([\w-]{1,64})=(.*)", re.ASCII | re.DOTALL)
HUB = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}(@[A-Za-z0-9][\w.-]{0,95})?")
NOT_YET = {State.VALIDATING, State.QUEUED}


@dataclass(frozen=True)
class Asked:
    """A request for a job, as far as it is the caller's to say."""

    method: str
    settings: Mapping[str, Any]
    model: str | None = None
    training_file: str | None = None
    validation_file: str | None = None
    seed: int | None = None


@dataclass
class Resolved:
    """What the job will run with."""

    settings: dict[str, Any]
    """Complete, with paths."""
    shown: dict[str, Any]
    """The same in the caller's words, without `out`."""
    uses: list[str] = field(default_factory=list)
    """Ids of the files."""


class Requests:
    """Reads requests, with what the service's owner allows."""

    def __init__(
        self,
        jobs: Jobs,
        files: Files,
        checker: Checker,
        root: Path,
        models: Mapping[str, Path],
        hub: bool,
    ):
        self.jobs, self.files, self.checker, self.root = jobs, files, checker, root
        self.models = models
        self.hub = hub

    def resolve(self, asked: Asked, owner: str, out: Path) -> Resolved:
        """Raises `Fault` for what cannot be."""
        if asked.method not in METHODS:
            raise Fault(unknown_name(asked.method, METHODS, "method.type"), "method.type")
        method = METHODS[asked.method]
        told = placed(asked, method)
        uses: list[str] = []
        settings = {**told, "out": str(out / method.place if method.place else out)}
        for name in method.inputs:
            if told.get(name) not in (None, *method.otherwise.get(name, ())):
                path = self._titled if name in method.named else self._path
                settings[name] = self._paths(path, name, told[name], owner, uses)
        with in_words(settings, told, method):
            complete = self.checker.ask(
                "check",
                config=method.config,
                settings=settings,
                inputs=list(method.inputs),
                words=list(method.words),
            )
        shown = {n: v for n, v in complete.items() if n != "out"}
        shown |= {n: told[n] for n in method.inputs if n in told}
        return Resolved(complete, shown, sorted(set(uses)))

    def model(self, name: str, owner: str) -> Path | None:
        """Where the operator's model is, or what a job of the owner has made; None: nowhere.

        Raises `Fault` for a job that has made nothing yet, or whose files are gone.
        """
        match = JOB.fullmatch(NAMED.sub("", name))
        if match is None:
            return self.models.get(name)
        job = self.jobs.job(match[1], owner)
        if job is None:
            return None
        if job["state"] != State.SUCCEEDED:
            raise Fault(f"the job {job['id']} is {job['state']}: name one that succeeded.", "model")
        return Path(self._job("model", match[1], match[2], owner))

    def estimate(self, asked: Asked, resolved: Resolved) -> Any:
        """Memory and arithmetic, where the method can count them."""
        method = METHODS[asked.method]
        if method.estimate is None:
            return None
        with in_words(resolved.settings, resolved.shown, method):
            return self.checker.ask("estimate", module=method.estimate, settings=resolved.settings)

    def _paths(
        self, path: Callable[..., str], name: str, value: Any, owner: str, uses: list[str]
    ) -> Any:
        """A reference, or a list of them, as paths."""
        if isinstance(value, list):
            return [path(name, one, owner, uses) for one in value]
        return path(name, value, owner, uses)

    def _titled(self, name: str, value: Any, owner: str, uses: list[str]) -> str:
        match = TITLED.fullmatch(value) if isinstance(value, str) else None
        if match is None:
            raise Fault(f"{name!r} is NAME=ID each, such as second=ftjob-...", name)
        return f"{match[1]}={self._path(name, match[2], owner, uses)}"

    def _path(self, name: str, value: Any, owner: str, uses: list[str]) -> str:
        if not isinstance(value, str):
            raise Fault(f"{name!r} is the id of a file or job, or the name of a model.", name)
        if FILE.fullmatch(value):
            return self._file(name, value, owner, uses)
        if match := JOB.fullmatch(NAMED.sub("", value)):
            return self._job(name, match[1], match[2], owner)
        if value in self.models:
            return str(self.models[value])
        if HUB.fullmatch(value):
            if self.hub:
                return value
            raise Fault(f"{name!r}: this service takes no models from a hub ({value}).", name)
        known = ", ".join(sorted(self.models)) or "none"
        raise Fault(
            f"{name!r} is {value[:80]!r}, which is no id of a file (file-...) or job (ftjob-...) "
            f"and no model of this service (known: {known}).",
            name,
        )

    def _file(self, name: str, value: str, owner: str, uses: list[str]) -> str:
        row = self.files.get(value, owner)
        if row is None:
            raise Fault(f"{name!r}: there is no file {value}; upload it first.", name)
        uses.append(value)
        path = self.files.path(row)
        return str(unpacked(path) if path.suffix == ".zip" else path)

    def _job(self, name: str, job_id: str, step: str | None, owner: str) -> str:
        job = self.jobs.job(job_id, owner)
        if job is None:
            raise Fault(f"{name!r}: there is no job {job_id}.", name)
        if job["method"] not in METHODS:  # of another version
            raise Fault(f"{name!r}: a {job['method']} job makes nothing that can be named.", name)
        if job["state"] in NOT_YET:
            raise Fault(f"{name!r}: the job {job_id} is {job['state']}; wait for it.", name)
        folder = self.root / "jobs" / job_id
        if job["state"] in FINAL and not folder.is_dir():  # service.retention
            raise Fault(f"{name!r}: the job {job_id} has no files, or none any more.", name)
        if step is None:
            return str(folder / METHODS[job["method"]].product)
        path = folder / "checkpoints" / f"step-{int(step):08d}"
        if not path.is_dir():
            raise Fault(f"{name!r}: the job {job_id} keeps no checkpoint of step {step}.", name)
        return str(path)


def placed(asked: Asked, method: Method) -> dict[str, Any]:
    """The settings with those that the request gives beside them."""
    told = dict(asked.settings)
    beside = {
        "model": (method.model, asked.model),
        "training_file": (method.training_file, asked.training_file),
        "validation_file": (method.validation_file, asked.validation_file),
        "seed": ("seed", asked.seed),
    }
    for name, (setting, value) in beside.items():
        if not value and value != 0:
            continue
        if setting is None:
            raise Fault(f"the method {asked.method} takes no {name}; leave it out.", name)
        if told.get(setting, value) != value:
            raise Fault(f"{name} and {setting!r} say different things; leave one out.", name)
        told[setting] = value
    if method.needs_training_file and method.training_file not in told:
        raise Fault(f"training_file is missing: {method.inputs[method.training_file or '']}.",
                    "training_file")  # fmt: skip
    if "out" in told:
        raise Fault("'out' is the service's to choose; leave it out.", "out")
    return told


@contextmanager
def in_words(
    settings: Mapping[str, Any], told: Mapping[str, Any], method: Method
) -> Iterator[None]:
    """Faults that come out of it name inputs as the caller did, not by their paths."""
    try:
        yield
    except Fault as fault:
        raise Fault(worded(str(fault), settings, told, method), fault.param) from fault


def worded(text: str, settings: Mapping[str, Any], told: Mapping[str, Any], method: Method) -> str:
    """A text with the caller's references where it has paths of the settings'."""
    pairs = []
    for name in method.inputs:
        paths, words = _listed(settings.get(name)), _listed(told.get(name))
        if name in method.named:
            paths, words = ([str(one).partition("=")[2] for one in some] for some in (paths, words))
        pairs += zip(map(str, paths), map(str, words), strict=False)
    for path, word in sorted(pairs, key=lambda pair: -len(pair[0])):  # one may begin another
        text = text.replace(path, word) if path else text
    return text


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [] if value is None else [value]


def unpacked(archive: Path) -> Path:
    """Where the files of an uploaded archive are, once they are checked."""
    return archive.with_name("unpacked")
