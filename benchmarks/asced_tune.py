"""The rows of ASCED's table and what their sources leave open in; one number of each, chosen, out.

Every value draws the same images, of other seeds than those that are reported; a detector that
leads no row judges them, and the value that leaves the least artifact area is kept. Else only
ASCED would have been fitted to the base.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from base_models.load import load_base
from benchmarks.asced_draw import Plan, draw_batch
from core.run import plain
from core.storage import read_json, write_atomic
from detector.measure import device
from miniature.law import SIZE
from treat.arms import BASE, encode
from treat.correctors.opening import Opened
from treat.evaluate import Judge
from treat.step import Chain

TRIED: Mapping[str, tuple[str, tuple[float, ...]]] = {
    "state_replacement": ("back", (1, 3, 6)),
    "score_clipping": ("bound", (3, 4, 5, 6)),
    "bayes": ("deviations", (3, 4, 6)),
    "sargd": ("strength", (0.25, 0.5, 1)),
    "pal_ttc": ("threshold", (0.3, 0.5, 0.7)),
    "asced_code": ("shake", (0.05, 0.1, 0.2)),
}
"""The number of each row and its values; T_d, factor and gamma are `diffdoctor calibrate`'s."""
Open = Callable[[str, Sequence[str]], Opened]
"""A row's name and NAME=VALUE words -> what makes its corrector."""


@torch.no_grad()
def tune(path: Path, rows: Sequence[str], plan: Plan, open_row: Open, judge: Judge) -> None:
    """Write `path`: `kept` (row -> NAME=VALUE) and the area that every value left; once."""
    if path.exists():
        return
    words = {row: [f"{TRIED[row][0]}={value:g}" for value in TRIED[row][1]]
             for row in rows if row in TRIED}  # fmt: skip
    place, model = device(plan.device), load_base(plan.base)
    text = encode(model, plan.draws, str(place))
    model.to(place)
    arms: dict[str, Any] = {BASE: None}
    for row, own in words.items():
        arms |= {f"{row} {word}": open_row(row, [word]).make(model) for word in own}
    model.drop_text_encoders()
    schedule, areas = model.schedule(plan.steps, SIZE, SIZE), dict.fromkeys(arms, 0.0)
    for at in tqdm(range(0, len(plan.draws), plan.batch), "tune"):
        draws = plan.draws[at : at + plan.batch]
        rows_of = {name: part[at : at + len(draws)].to(place) for name, part in text.items()}
        drawn = draw_batch(Chain(model, schedule, rows_of), draws, arms, place)
        for name, images in drawn.images.items():
            maps = judge(images, [one.prompt for one in draws])
            areas[name] += (maps >= 0.5).float().mean(dim=(1, 2, 3)).sum().item()
    areas = {name: total / len(plan.draws) for name, total in areas.items()}
    kept = {row: min(own, key=lambda word: areas[f"{row} {word}"]) for row, own in words.items()}
    found = {"images": len(plan.draws), "kept": kept, "area": areas}
    write_atomic(path, (json.dumps(plain(found), indent=2) + "\n").encode())


def kept(path: Path, row: str) -> list[str]:
    """The words that a row was left with."""
    word = read_json(path)["kept"].get(row)
    return [] if word is None else [word]
