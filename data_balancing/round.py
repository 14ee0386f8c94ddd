"""A detector, its data and a base model in; better detectors out, until they get worse.

    diffdoctor data round --detector runs/detector --labelled store --held-out hard_store \
        --base FOLDER --prompt-list prompts.jsonl --from-records --rounds 3 --out runs/rounds

The loop of DiffDoctor (arXiv 2501.12382): find the categories that the detector judges oddly, draw
more of them, let people label the hard images and the detector the others, train on, again. Naive
pseudo-labels are noisy (arXiv 2509.19589): each student is scored on images by people, and where
its squared error there rises the loop ends. OUT/round-1, OUT/round-2 ... have a folder or file a
stage; OUT/round-0 the first teacher's score; OUT/best.json says which detector is best, OUT/best
is a copy of it.
"""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

import core.config
from core.errors import UserError
from core.storage import alone, write_atomic
from data_balancing.round_checks import check, claim
from data_balancing.round_settings import Config
from data_balancing.round_stages import Round, measure
from detector.evaluate import SHOWN
from detector.storage import copy_detector

Score = Mapping[str, float | None]
"""Figures on the held-out images; None where the maps were no numbers."""
FIGURES = ("mse", "kl_fn", "kl_fp", "false_positive_images")

__all__ = ["Config", "main"]


def main(config: Config) -> int | None:
    """All rounds in order; returns early with the exit code of a stage that was interrupted."""
    check(config)
    claim(config)
    with alone(config.out / ".round.lock", f"another process works in {config.out}; wait for it."):
        scores, best = [first_score(config)], config.detector
        for number in range(1, config.rounds + 1):
            turn = Round(config, number, teacher=best)
            for stage in (
                turn.tag,
                turn.balance,
                turn.prompts,
                turn.synthesize,
                turn.hard_cases,
                turn.annotate,
                turn.pseudo_label,
                turn.train,
                turn.score,
            ):
                code = turn.run(stage)
                if code:
                    return code
            scores.append(read_score(turn.folder / "score.json"))
            best = best if worse(scores) else turn.detector
            keep(config.out, scores, best)
            if worse(scores):
                break
        Console().print(table(scores))
        print(verdict(scores, best))
    return None


def first_score(config: Config) -> Score:
    """The first teacher's: what a student must not fall behind."""
    path = config.out / "round-0/score.json"
    if not path.is_file():
        measure(config, config.detector, path)
    return read_score(path)


def read_score(path: Path) -> Score:
    try:
        figures: Mapping[str, Any] = json.loads(path.read_text())["overall"]["all"]
        return {name: figures[name] for name in FIGURES}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is damaged; remove it and its line in stages.json.") from error


def worse(scores: Sequence[Score]) -> bool:
    """Whether the last student errs more than the best before it; one that says no number does."""
    errors = [math.inf if score["mse"] is None else score["mse"] for score in scores]
    return errors[-1] > min(errors[:-1]) or errors[-1] == math.inf


def kept(scores: Sequence[Score]) -> int:
    """Number of the round whose detector is the best: the loop ends with the first that is not."""
    return len(scores) - 1 - worse(scores)


def keep(out: Path, scores: Sequence[Score], best: Path) -> None:
    """Say in `best.json` which detector that is, and have a copy of it in `best/`."""
    number = kept(scores)
    said = {"round": number, "detector": str(best.resolve()), **scores[number]}
    text = json.dumps({**said, "stopped": worse(scores)}, indent=2) + "\n"
    copy_detector(best, out / "best")
    write_atomic(out / "best.json", text.encode())


def table(scores: Sequence[Score]) -> Table:
    """A row for every round, the first teacher's before them."""
    shown = Table("round", *(SHOWN[name] for name in FIGURES), title="On the held-out images")
    for number, score in enumerate(scores):
        figures = ("-" if score[name] is None else f"{score[name]:.4f}" for name in FIGURES)
        shown.add_row(f"{number}{' (kept)' if number == kept(scores) else ''}", *figures)
    return shown


def verdict(scores: Sequence[Score], best: Path) -> str:
    last = len(scores) - 1
    if worse(scores):
        return (
            f"Round {last} errs more than round {kept(scores)} on the held-out images: the loop "
            f"ends; the detector to keep is {best}."
        )
    return f"The detector to keep is {best}."


if __name__ == "__main__":
    core.config.run_program(main, Config, prog="diffdoctor data round")
