"""A program's settings in, its run folder out: figures, events, pictures and checkpoints.

config.yaml run.json       what was asked, by which program
metrics.jsonl events.jsonl one JSON object a line, each fsynced
summary.json               the final figures
checkpoints/ pictures/ tensorboard/
"""

import datetime
import json
import math
import sys
import time
import weakref
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from pydantic import BaseModel
from tqdm import tqdm

from core.config import from_mapping, read_yaml, to_yaml
from core.errors import UserError
from core.interrupts import Interrupts
from core.storage import append_line, lock_file, read_lines, sync_folder, write_atomic
from core.wishes import take

T = TypeVar("T")

PAUSED = 75
"""Exit code of a program that stopped on a signal after saving (EX_TEMPFAIL: run it again)."""
PREPARED = {
    "run.lock", "config.yaml", "job.json", "lease.json", "stop.json", "outcome.json", "log.txt",
    "sample.now", "save.now",
}  # fmt: skip
"""What may lie in a folder before its run begins: a launcher's files and our own first ones."""

_open_runs: "weakref.WeakValueDictionary[Path, Run]" = weakref.WeakValueDictionary()


class Run:
    """One program's folder, owned by one process; made by `Run.start`."""

    def __init__(self, folder: Path, program: str, main_process: bool, lock: BinaryIO | None):
        self.folder = folder
        self.program = program
        self.checkpoints = folder / "checkpoints"
        self.pictures = folder / "pictures"
        self.main_process = main_process
        self._lock = lock
        self._signals = Interrupts()
        self._writer: Any = None
        self._logged = False

    @classmethod
    def start(
        cls,
        config: BaseModel,
        out: Path,
        program: str,
        main_process: bool = True,
        may_change: Collection[str] = (),
    ) -> "Run":
        """Make or take up again the run folder `out`.

        The same program with the same settings resumes; settings named in `may_change` (and
        `out` itself) may differ. Other ranks (`main_process=False`) write nothing.
        Raises `UserError` for a folder of something else, of other settings, or in use.
        """
        folder = Path(out).resolve()
        if not main_process:
            return cls(folder, program, False, None)
        former = _open_runs.get(folder)
        if former is not None:
            former.close()
        _prepare_folder(folder)
        busy = f"another process is running in {folder}; wait for it, stop it, or choose another."
        lock = lock_file(folder / "run.lock", busy)
        try:
            resumed = _claim(folder, config, program, {*may_change, "out"})
        except BaseException:
            lock.close()
            raise
        run = cls(folder, program, True, lock)
        _open_runs[folder] = run
        run.checkpoints.mkdir(exist_ok=True)
        run.pictures.mkdir(exist_ok=True)
        newest = _newest_step(run.checkpoints)
        if resumed and newest >= 0:  # without a checkpoint, the first figures say where it goes on
            run.rewind(newest)
        return run

    @property
    def interrupted(self) -> bool:
        """True once SIGTERM, SIGINT or SIGUSR1 has asked the program to save and stop."""
        return self._signals.received

    def wishes(self) -> frozenset[str]:
        """What a person has asked for since the last look (`core.wishes`); told once."""
        return take(self.folder) if self.main_process else frozenset()

    def log(self, step: int, **figures: Any) -> None:
        """Append one line of figures (numbers or one-element tensors) and fsync it.

        Values that are not finite are written as null, which JSON readers accept.
        """
        if not self.main_process:
            return
        if not self._logged:  # the newest checkpoint may have been older than its name said
            self._logged = True
            self.rewind(step - 1)
        values = {name: _number(value) for name, value in figures.items()}
        line = {"step": step, "time": round(time.time(), 3), **values}
        append_line(self.folder / "metrics.jsonl", json.dumps(line, allow_nan=False))
        self._draw(step, values)

    def event(self, level: str, message: str, **data: Any) -> None:
        """Record something worth telling a person ("info", "warn", "error"), and say it."""
        if not self.main_process:
            return
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
        line = {"time": now, "level": level, "message": message, "data": plain(data)}
        append_line(self.folder / "events.jsonl", json.dumps(line, allow_nan=False))
        tqdm.write(f"{level}: {message}", file=sys.stderr)

    def summary(self, figures: Mapping[str, Any]) -> None:
        """Write `summary.json`, replacing an earlier one as a whole."""
        if self.main_process:
            text = json.dumps(plain(figures), indent=2, allow_nan=False) + "\n"
            write_atomic(self.folder / "summary.json", text.encode())

    def progress(
        self,
        iterable: Iterable[T],
        total: int | None = None,
        initial: int = 0,
        description: str = "",
    ) -> Iterator[T]:
        """Pass the items on, showing the share done and the time left on stderr."""
        interval = 0.1 if sys.stderr.isatty() else 30.0  # seconds; a log file needs few lines
        hidden = not self.main_process
        yield from tqdm(
            iterable, description, total, initial=initial, mininterval=interval, disable=hidden
        )

    def rewind(self, step: int) -> None:
        """Drop the figures of steps after `step`: they are about to be computed again."""
        path = self.folder / "metrics.jsonl"
        if not self.main_process or not path.exists():
            return
        lines = read_lines(path)
        kept = [line for line in lines if isinstance(line.get("step"), int)]
        kept = [line for line in kept if line["step"] <= step]
        if len(kept) < len(lines) or not path.read_bytes().endswith(b"\n"):
            write_atomic(path, "".join(json.dumps(line) + "\n" for line in kept).encode())

    def close(self) -> None:
        """Give the folder free and the signals back; also done when the run is forgotten."""
        self._signals.close()
        if self._writer:
            self._writer.close()
        if self._lock is not None:
            self._lock.close()
        self._writer = self._lock = None

    def __enter__(self) -> "Run":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _draw(self, step: int, values: Mapping[str, float | None]) -> None:
        if self._writer is None:
            self._writer = _tensorboard(self.folder / "tensorboard", step)
        if self._writer:
            for name, value in values.items():
                if value is not None:
                    self._writer.add_scalar(name, value, step)


def plain(value: Any) -> Any:
    """A value as JSON can hold it: tensors and arrays as numbers, paths as text, NaN as null."""
    if isinstance(value, BaseModel):
        value = value.model_dump(mode="json")
    if isinstance(value, Mapping):
        return {str(key): plain(inner) for key, inner in value.items()}
    if hasattr(value, "tolist"):  # tensors, arrays and numpy's numbers
        value = value.tolist()
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(inner) for inner in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if isinstance(value, bool | int | str | None) else str(value)


def _number(value: Any) -> float | int | None:
    number = value.item() if hasattr(value, "item") else value
    if isinstance(number, bool | int):
        return int(number)
    return float(number) if math.isfinite(number) else None


def _prepare_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"cannot make the run folder {folder} ({error.strerror}); choose another."
        ) from error
    strange = {path.name for path in folder.iterdir() if not path.name.startswith(".")} - PREPARED
    if strange and not (folder / "run.json").exists():
        raise UserError(
            f"{folder} is not empty and holds no run (found {min(strange)!r}); "
            "choose a new folder for the run."
        )


def _claim(folder: Path, config: BaseModel, program: str, may_change: set[str]) -> bool:
    """Check or write run.json and config.yaml; True if the run existed."""
    header, settings = folder / "run.json", folder / "config.yaml"
    for left in folder.glob(".*.tmp"):  # by an owner that was stopped while it wrote
        left.unlink()
    if header.exists():
        owner = _owner(header)
        if owner != program:
            raise UserError(f"{folder} is a run of {owner}, not of {program}; choose another.")
    if settings.exists():
        names = _differences(read_yaml(settings), config)
        hard = sorted(name for name in names if name.split(".")[0] not in may_change)
        if hard:
            raise UserError(
                f"{folder} was started with other settings ({', '.join(hard)} differ); "
                "use the same to resume, or choose another folder."
            )
    resumed = header.exists()
    write_atomic(settings, to_yaml(config).encode())
    if not resumed:
        created = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        text = json.dumps({"program": program, "created": created, "format": 1}, indent=2) + "\n"
        write_atomic(header, text.encode())
        sync_folder(folder.parent)
    return resumed


def _owner(header: Path) -> str:
    try:
        return json.loads(header.read_text(encoding="utf-8"))["program"]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{header} is damaged; choose a new folder for the run.") from error


def _differences(old: dict[str, Any], config: BaseModel) -> set[str]:
    """Dotted names whose values differ; settings that are newer than the file take defaults."""
    try:
        old = from_mapping(type(config), old).model_dump(mode="json")
    except UserError:
        pass  # a name was removed or its range narrowed since: compare what is written
    before, now = _flat(old), _flat(config.model_dump(mode="json"))
    return {name for name in {*before, *now} if before.get(name) != now.get(name)}


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat = {}
    for name, value in values.items():
        if isinstance(value, dict) and value:
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat


def _newest_step(checkpoints: Path) -> int:
    names = [path.name.removeprefix("step-") for path in checkpoints.glob("step-*")]
    return max((int(name) for name in names if name.isdigit()), default=-1)


def _tensorboard(folder: Path, step: int) -> Any:
    """A writer, or False where TensorBoard is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return False
    return SummaryWriter(str(folder), purge_step=step)
