"""A treat run's folder in; its figures over the steps out, as the report draws them.

The reward's score, the second detector's and the judge's stand side by side: where the reward
falls on while the others turn, healing has become hacking. The judge never ran inside the
treatment: it reads afterwards the images that the run kept at each look
(`watched/step-*/*.png`, with `watched/prompts.jsonl`).
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from core.contracts import ArtifactMap, Images
from core.image_files import list_images
from core.images import read_images
from core.prompts import read_prompts
from core.storage import read_lines
from treat.report import Curve

TITLES = {
    "reward_mean": "reward: mean of its map",
    "second_mean": "second detector: mean of its map",
    "watch_offline": "loss on held-out real images",
    "sharpness": "sharpness",
}
BATCH = 16


def run_curves(folder: Path, judge: Callable[[Images, Sequence[str]], ArtifactMap]) -> list[Curve]:
    """The curves of a run folder; none for a plain LoRA file."""
    if not (folder / "metrics.jsonl").is_file():
        return []
    kept = kept_step(folder)
    lines = read_lines(folder / "metrics.jsonl")
    curves = [Curve(title, points(lines, name), kept) for name, title in TITLES.items()]
    curves.insert(2, Curve("judge: mean of its map", judged(folder / "watched", judge), kept))
    named = [curve._replace(title=f"{folder.name}: {curve.title}") for curve in curves]
    return [curve for curve in named if len(curve.points) > 1]


def kept_step(folder: Path) -> int | None:
    summary = folder / "summary.json"
    return json.loads(summary.read_text()).get("best_step") if summary.is_file() else None


def points(lines: Sequence[dict], name: str) -> list[tuple[float, float]]:
    """(step, value) wherever the figure was measured."""
    return [
        (float(line["step"]), float(line[name]))
        for line in lines
        if isinstance(line.get("step"), int) and isinstance(line.get(name), int | float)
    ]


@torch.no_grad()
def judged(
    folder: Path, judge: Callable[[Images, Sequence[str]], ArtifactMap]
) -> list[tuple[float, float]]:
    """The judge's mean map over the images of each look; empty where none were kept."""
    if not (folder / "prompts.jsonl").is_file():
        return []
    prompts = read_prompts(folder / "prompts.jsonl")
    found = []
    for look in sorted(folder.glob("step-*")):
        paths = list_images(look)
        parts = [
            judge(read_images(paths[at : at + BATCH]), prompts[at : at + BATCH])
            for at in range(0, len(paths), BATCH)
        ]
        found.append((float(look.name.removeprefix("step-")), torch.cat(parts).mean().item()))
    return found
