"""A run folder of `diffdoctor treat` in; the prompts out that its adapter may know by heart.

What an adapter does on the prompts that taught it, or on those whose images chose its step, says
little of others. A plain LoRA file does not name them.
"""

from collections.abc import Mapping
from pathlib import Path

from core.config import from_mapping
from core.errors import UserError
from core.inputs import NOTE, read_note
from core.prompts import read_prompts
from core.run import Run
from treat.adapter import Adapter
from treat.cache import digest
from treat.settings import Config
from treat.texts import split_prompts


def tell_of_taught(
    run: Run, arms: Mapping[str, Adapter | None], paths: Mapping[str, str], shown: set[str]
) -> dict[str, int | None]:
    """How many of the prompts shown taught each adapter or chose its step; None: not known."""
    found: dict[str, int | None] = {}
    for name, path in paths.items():
        adapter = arms[name]
        known = taught_by(Path(path).expanduser(), adapter) if adapter else None
        found[name] = None if known is None else len(known & shown)
        if known is None:
            run.event(
                "info",
                f"whether any of these prompts taught '{name}' is not known: only a run folder, "
                "with the files of prompts that it was begun with, says so",
            )
        elif found[name]:
            run.event(
                "warn",
                f"{found[name]} of these {len(shown)} prompts taught '{name}' or chose its step: "
                "give held-out ones (--prompts) for what it does on prompts that it has not seen",
            )
    return found


def taught_by(path: Path, adapter: Adapter) -> set[str] | None:
    """The prompts whose images a run was rewarded for or watched; None where that is not known.

    Captions of its real images do not count, nor what taught an adapter that it started from or
    stood beside. A file of prompts that has changed since is not believed.
    """
    folder = path if (path / NOTE).is_file() else path.parent.parent  # of a checkpoint
    try:
        config = from_mapping(Config, adapter.run)
        noted = read_note(folder / NOTE)
        for name in ("prompts", "watch_prompts"):
            file = getattr(config, name)
            if file and noted.get(name) != digest(read_prompts(file)):
                return None
        parts = split_prompts(
            config.prompts, config.watch_images, watched_file=config.watch_prompts
        )
    except (UserError, OSError):
        return None
    return {*parts.held, *(parts.train if config.rewarded else ())}
