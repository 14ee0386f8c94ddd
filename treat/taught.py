"""A run folder of `diffdoctor treat` in; the prompts out that its adapter may know by heart.

What an adapter does on the prompts that taught it, or on those that were watched while it learnt
and may have chosen its step, says little of others.
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
    """How many of the prompts shown taught each adapter or were watched; None: not known."""
    found: dict[str, int | None] = {}
    for name, path in paths.items():
        adapter = arms[name]
        known = taught_by(Path(path).expanduser(), adapter) if adapter else None
        found[name] = None if known is None else len(known & shown)
        if known is None:
            run.event(
                "info",
                f"whether any of these prompts taught '{name}' is not known: a LoRA file does not "
                "say, nor a run whose files of prompts changed or that built on another adapter",
            )
        elif found[name]:
            run.event(
                "warn",
                f"{found[name]} of these {len(shown)} prompts taught '{name}' or were watched: "
                "give held-out ones (--prompts) for what it does on prompts that it has not seen",
            )
    return found


def taught_by(path: Path, adapter: Adapter) -> set[str] | None:
    """The prompts whose images a run was rewarded for or watched; None where that is not known.

    So it is where a file of prompts has changed since, or the run started from another adapter or
    stood beside one. Captions of real images do not count.
    """
    folder = path if (path / NOTE).is_file() else path.parent.parent  # of a checkpoint
    try:
        config = from_mapping(Config, adapter.run)
        if config.start or config.beside:
            return None
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
