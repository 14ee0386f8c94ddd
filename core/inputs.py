"""What a program reads, noted in its run folder, so that what resumes it reads the same.

    inputs.json   a digest of every input, by its setting

Settings only name inputs, and what lies under a name may change. Until something has come of them
they are noted anew.
"""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from core.digests import data_digest
from core.errors import UserError
from core.run import Run
from core.storage import write_atomic

NOTE = "inputs.json"


def hold(run: Run, now: Mapping[str, Any], begun: bool = False) -> None:
    """Note the inputs of a run; raise `UserError` where those that it came from were others.

    `begun`: something has come of them, though no checkpoint was written.
    """
    before = former(run, begun)
    if before is not None:
        check_same(run.folder, before, now)
    note(run, now)


def former(run: Run, begun: bool = False) -> dict[str, Any] | None:
    """The inputs that what lies in a run folder came from; None where nothing has."""
    path = run.folder / NOTE
    if not run.main_process or not path.is_file():
        return None
    return read_note(path) if begun or any(run.checkpoints.iterdir()) else None


def note(run: Run, now: Mapping[str, Any]) -> None:
    if run.main_process:
        write_atomic(run.folder / NOTE, (json.dumps(dict(now), indent=2) + "\n").encode())


def read_note(path: Path) -> dict[str, Any]:
    try:
        said = json.loads(path.read_text())
        return {str(name): value for name, value in said.items()}
    except (ValueError, AttributeError) as error:
        raise UserError(
            f"{path} is damaged: remove it where the inputs are what the run was begun with, or "
            "choose another --out."
        ) from error


def check_same(folder: Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Raise `UserError` unless the notes agree on all that both name."""
    other = [name for name in before if name in now and before[name] != now[name]]
    if other:
        options = ", ".join(f"--{name.replace('_', '-')}" for name in other)
        raise UserError(
            f"{folder} was begun with other contents of {options} than lie there now: put the "
            "former back to go on, or choose another --out."
        )


def of_data(folders: Iterable[Path]) -> list[str]:
    """Of stores and plain folders of data, in their order."""
    return [data_digest(folder) for folder in folders]
