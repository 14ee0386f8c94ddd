"""The rows of ASCED's table and what their sources leave open in; their numbers, chosen, out.

Every value draws the same images, of other seeds than those that are reported; a detector that
leads no row judges them, and of the values that keep the images' variety (as `diffdoctor calibrate`
asks of a gamma) the one that leaves the least artifact area is kept. Else only ASCED would have
been fitted to the base.
"""

import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from base_models.load import load_base
from benchmarks.asced_draw import Plan, draw_batch
from core.contracts import Images
from core.run import plain
from core.storage import read_json, write_atomic
from detector.measure import device
from miniature.law import SIZE
from treat.arms import BASE, encode
from treat.calibrate import chosen, variety
from treat.correctors.opening import Opened
from treat.evaluate import Judge
from treat.step import Chain

TRIED: Mapping[str, Mapping[str, tuple[float, ...]]] = {
    "state_replacement": {"back": (1, 3, 6)},
    "score_clipping": {"bound": (3, 4, 5, 6)},
    "bayes": {"deviations": (3, 4, 6), "gamma": (0.5, 1)},
    "sargd": {"strength": (0.25, 0.5, 1)},
    "pal_ttc": {"threshold": (0.3, 0.5, 0.7), "gamma": (0.25, 0.5, 1)},
    "asced_code": {"shake": (0.05, 0.1, 0.2)},
}
"""The numbers of each row and their values, each with each; T_d, factor and gamma of ASCED are
`diffdoctor calibrate`'s."""
Open = Callable[[str, Sequence[str]], Opened]
"""A row's name and NAME=VALUE words -> what makes its corrector."""


@torch.no_grad()
def tune(path: Path, rows: Sequence[str], plan: Plan, open_row: Open, judge: Judge) -> None:
    """Write `path`: `kept` (row -> words), and what every choice left: `area`, `variety`; once."""
    if path.exists():
        return
    words = {row: choices(row) for row in rows if row in TRIED}
    place, model = device(plan.device), load_base(plan.base)
    text = encode(model, plan.draws, str(place))
    model.to(place)
    arms: dict[str, Any] = {BASE: None}
    for row, own in words.items():
        arms |= {f"{row} {said}": open_row(row, said.split()).make(model) for said in own}
    model.drop_text_encoders()
    schedule, areas = model.schedule(plan.steps, SIZE, SIZE), dict.fromkeys(arms, 0.0)
    seen: dict[str, list[Images]] = {name: [] for name in arms}
    for at in tqdm(range(0, len(plan.draws), plan.batch), "tune"):
        draws = plan.draws[at : at + plan.batch]
        rows_of = {name: part[at : at + len(draws)].to(place) for name, part in text.items()}
        drawn = draw_batch(Chain(model, schedule, rows_of), draws, arms, place)
        for name, images in drawn.images.items():
            maps = judge(images, [one.prompt for one in draws])
            areas[name] += (maps >= 0.5).float().mean(dim=(1, 2, 3)).sum().item()
            seen[name].append(images)
    left = {
        name: {"area": total / len(plan.draws), "variety": variety(torch.cat(seen[name]))}
        for name, total in areas.items()
    }
    best = {row: chosen([{"words": said, **left[f"{row} {said}"]} for said in own], left[BASE])
            for row, own in words.items()}  # fmt: skip
    kept = {row: one["words"] for row, one in best.items()}
    found = {"images": len(plan.draws), "kept": kept, "left": left}
    write_atomic(path, (json.dumps(plain(found), indent=2) + "\n").encode())


def choices(row: str) -> list[str]:
    """NAME=VALUE words of every choice, parted by a space."""
    named = ([f"{name}={value:g}" for value in values] for name, values in TRIED[row].items())
    return [" ".join(words) for words in itertools.product(*named)]


def kept(path: Path, row: str) -> list[str]:
    """The words that a row was left with."""
    return read_json(path)["kept"].get(row, "").split()
