"""What a person asks of a program while it runs, each wish a file in the run folder.

sample.now  pictures after the step that it is in
save.now    a checkpoint after that step

Whoever may write there may ask (`touch sample.now`), on whichever machine the program runs: it
looks between two steps. A file is taken away before its wish is met, so that one at which the
program breaks is not waiting for it again; asked twice before a look, a wish is met once.
"""

import os
from pathlib import Path

MET = {"sample": "drew", "save": "saved"}
"""What a program says it did."""
WISHES = tuple(MET)


def ask(folder: Path, wish: str) -> bool:
    """True if the wish is new; False where it waits already.

    Raises `FileNotFoundError` where there is no such folder.
    """
    try:
        os.close(os.open(folder / f"{wish}.now", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644))
    except FileExistsError:
        return False
    return True


def take(folder: Path) -> frozenset[str]:
    """The wishes that wait; they do so no longer."""
    return frozenset(wish for wish in WISHES if _taken(folder / f"{wish}.now"))


def _taken(path: Path) -> bool:
    try:
        path.unlink()
    except FileNotFoundError:
        return False
    return True
