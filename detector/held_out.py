"""Maps and labels of held-out images in; what a person judges a detector by out.

held_out.json             figures by group, predicted against labelled, the worst cases
held_out/00000-image.png  the worst case, beside it its -label.png and -map.png (gray), and so on

Of a run folder, where the service's dashboard finds them.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from core.contracts import ArtifactMap, Images
from core.heatmap import colourise, overlay, write_map
from core.images import AnyPicture, contact_sheet, write_image
from core.run import plain
from core.samples import Record, Sample
from core.storage import write_atomic
from detector.data import to_tensors
from detector.measure import by_group
from detector.metrics import BINARY, reliability

PICTURED = 8
"""Images of the sheet that a training draws."""
WORST = 12
"""Images that are shown: those with the largest squared error."""


def sheet(images: Images, target: ArtifactMap, maps: ArtifactMap) -> AnyPicture:
    """A row for each image: itself, its label, its map, its overlay."""
    columns = (images, colourise(target), colourise(maps), overlay(images, maps))
    rows = [[column[i] for column in columns] for i in range(len(images))]
    return contact_sheet(rows, columns=("image", "label", "map", "overlay"))


def write_held_out(
    folder: Path,
    samples: Sequence[Sample],
    records: Sequence[Record],
    maps: ArtifactMap,
    target: ArtifactMap,
    *,
    threshold: float = 0.5,
    size: int | None = None,
) -> None:
    """Write the file and the pictures below `folder`; images at the size that was measured at."""
    cases = worst(records, maps, target, threshold)
    (folder / "held_out").mkdir(exist_ok=True)
    for number, case in enumerate(cases):
        place, row = folder / "held_out", case.pop("row")
        images, _ = to_tensors([samples[row]], size)
        write_image(place / f"{number:05d}-image.png", images[0])
        write_map(place / f"{number:05d}-label.png", target[row])
        write_map(place / f"{number:05d}-map.png", maps[row])
    found = {
        "threshold": threshold,
        "groups": by_group(maps, target, records, threshold),
        "reliability": reliability(maps, target),
        "worst": cases,
    }
    text = json.dumps(plain(found), indent=2, allow_nan=False) + "\n"
    write_atomic(folder / "held_out.json", text.encode())


def worst(
    records: Sequence[Record], maps: ArtifactMap, target: ArtifactMap, threshold: float
) -> list[dict[str, Any]]:
    """At most `WORST` images, the worst first: whose they are and what is wrong with their maps.

    `missed` and `false_alarm` are shares of the image's pixels.
    """
    errors = (maps - target).double().square().mean((1, 2, 3))
    flagged, broken = maps >= threshold, target >= BINARY
    missed = (broken & ~flagged).double().mean((1, 2, 3))
    alarms = (flagged & ~broken).double().mean((1, 2, 3))
    order = errors.argsort(descending=True, stable=True)[:WORST].tolist()
    return [
        {
            "row": row,
            "key": records[row].key,
            "prompt": records[row].prompt,
            "category": records[row].category,
            "source": records[row].source,
            "error": errors[row].item(),
            "missed": missed[row].item(),
            "false_alarm": alarms[row].item(),
        }
        for row in order
    ]
