"""Look at images: an image or a folder in; maps, overlays, a table and a contact sheet out.

    diffdoctor detector diagnose photo.png --detector runs/detector --out diagnosis

OUT/maps/NAME.png (8-bit gray), OUT/overlays/NAME.png, OUT/table.csv, OUT/sheet.png. A file that
is no readable image is listed in the table and does not stop the others.
"""

import csv
import io
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Annotated

import tyro
from pydantic import Field
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

import core.config
from core.contracts import Detector
from core.errors import UserError
from core.heatmap import Map, colour_bar, colourise, overlay, write_map
from core.image_files import list_images
from core.images import Picture, contact_sheet, read_image, write_image
from core.storage import write_atomic
from detector.measure import device, predict
from detector.segformer import freeze
from detector.storage import open_detector

THUMBNAIL = 192
"""Longer side, in pixels, of a picture on the sheet."""


class Config(core.config.Config):
    """Settings of one diagnosis."""

    images: Annotated[Path, tyro.conf.Positional, core.config.placed("IMAGES")]
    """An image, or a folder of images."""
    detector: Path
    """Folder of the detector, or of the run that trained it."""
    out: Path
    """Where maps, overlays, table.csv and sheet.png go."""
    threshold: float = Field(0.5, gt=0, lt=1)
    """From here a pixel is outlined and an image called broken."""
    sheet: int = Field(24, ge=0, le=200)
    """Images on the contact sheet: those with the surest artifacts."""
    device: str = "auto"
    """`auto`, or a torch device."""
    json_file: core.config.JsonFile = None
    """Also write the figures of all images together to this file."""


@dataclass(frozen=True)
class Finding:
    """One row of the table; figures are those of the map."""

    image: str
    verdict: str
    """`artifact`, `sound` or `unreadable`."""
    max: float | None = None
    mean: float | None = None
    area: float | None = None
    """Share of the pixels at or above the threshold."""
    note: str = ""


def main(config: Config) -> int | None:
    """Diagnose every image; exit code 1 when none could be read."""
    paths = list_images(config.images)
    detector = freeze(open_detector(config.detector)).to(device(config.device))
    _prepare(config.out, paths)
    findings, shown = [], Surest(config.sheet)
    for path in tqdm(paths, "diagnose", disable=len(paths) == 1):
        finding, image, map = diagnose(detector, path, config.threshold)
        findings.append(finding)
        if image is not None and map is not None:
            _write(config.out, path, image, map, config.threshold)
            shown.add(finding, image, map)
    write_atomic(config.out / "table.csv", to_csv(findings).encode())
    if shown.kept:
        write_image(config.out / "sheet.png", shown.sheet(config.threshold))
    together = summary(findings)
    if config.json_file is not None:
        write_atomic(config.json_file, (json.dumps(together, indent=2) + "\n").encode())
    Console().print(to_table(findings, together))
    return 1 if all(finding.verdict == "unreadable" for finding in findings) else None


def diagnose(
    detector: Detector, path: Path, threshold: float
) -> tuple[Finding, Picture | None, Map | None]:
    """What the detector says of one file; no picture and map where it cannot be read."""
    try:
        image = read_image(path)
    except UserError as error:
        return Finding(path.name, "unreadable", note=str(error)), None, None
    finding, map = look(detector, image, path.name, threshold)
    return finding, image, map


def look(detector: Detector, image: Picture, name: str, threshold: float) -> tuple[Finding, Map]:
    """The same of an image at hand."""
    map = predict(detector, image[None], 1)[0]
    peak = map.max().item()
    area = (map >= threshold).float().mean().item()
    verdict = "artifact" if peak >= threshold else "sound"
    return Finding(name, verdict, peak, map.mean().item(), area), map


def to_csv(findings: Iterable[Finding]) -> str:
    """The table as CSV text; figures to six digits."""
    text = io.StringIO()
    writer = csv.DictWriter(text, [field.name for field in fields(Finding)], lineterminator="\n")
    writer.writeheader()
    for finding in findings:
        row = {name: _digits(value) for name, value in asdict(finding).items()}
        writer.writerow(row)
    return text.getvalue()


def summary(findings: Sequence[Finding]) -> dict[str, float | None]:
    """Counts, the share of readable images with artifacts, the means of their maps and areas."""
    read = [finding for finding in findings if finding.verdict != "unreadable"]
    broken = [finding for finding in read if finding.verdict == "artifact"]
    return {
        "images": len(findings),
        "unreadable": len(findings) - len(read),
        "with_artifacts": len(broken),
        "share": _mean([float(finding.verdict == "artifact") for finding in read]),
        "mean": _mean([finding.mean or 0.0 for finding in read]),
        "area": _mean([finding.area or 0.0 for finding in read]),
    }


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def to_table(findings: Sequence[Finding], together: Mapping[str, float | None]) -> Table:
    """What they are together and the rows with the surest artifacts, for the terminal."""
    share, area = (together[name] or 0.0 for name in ("share", "area"))
    title = (
        f"{together['images']} images: {together['with_artifacts']} with artifacts ({share:.0%}; "
        f"{area:.1%} of the area in the mean), {together['unreadable']} unreadable"
    )
    table = Table("image", "verdict", "max", "mean", "area", "note", title=title)
    for finding in sorted(findings, key=lambda f: (f.max is not None, -(f.max or 0)))[:20]:
        table.add_row(*("" if v is None else str(_digits(v, 3)) for v in asdict(finding).values()))
    return table


RESULTS = {"maps", "overlays", "table.csv", "sheet.png"}


class Surest:
    """The images with the highest maxima, as thumbnails, so that a large folder fits in memory."""

    def __init__(self, number: int):
        self.number = number
        self.kept: list[tuple[float, str, Tensor, Tensor]] = []

    def add(self, finding: Finding, image: Picture, map: Map) -> None:
        entry = (finding.max or 0.0, finding.image, _thumbnail(image), _thumbnail(map))
        self.kept = sorted([*self.kept, entry], key=lambda e: (-e[0], e[1]))[: self.number]

    def sheet(self, threshold: float) -> Picture:
        rows = [
            [image, colourise(map[None])[0], overlay(image[None], map[None], threshold)[0]]
            for _, _, image, map in self.kept
        ]
        rows[0].append(colour_bar(rows[0][0].shape[1]))
        labels = [f"{name[:40]}  max {peak:.2f}" for peak, name, _, _ in self.kept]
        return contact_sheet(rows, labels, columns=("image", "map", "overlay"))


def _thumbnail(picture: Tensor) -> Tensor:
    height, width = picture.shape[-2:]
    scale = THUMBNAIL / max(height, width)
    if scale >= 1:
        return picture
    size = (max(1, round(height * scale)), max(1, round(width * scale)))
    return F.interpolate(picture[None], size=size, mode="bilinear", antialias=True)[0].clamp(0, 1)


def _prepare(out: Path, paths: list[Path]) -> None:
    """Folders for the results; names that would overwrite each other, or the input, are refused."""
    count = Counter(path.stem for path in paths)
    twice = next((stem for stem, number in count.items() if number > 1), None)
    if twice is not None:
        raise UserError(f"two images are called {twice!r}; rename one, their maps would collide.")
    whole = out.resolve()
    if paths[0].parent.resolve() in (whole, whole / "maps", whole / "overlays"):
        raise UserError(f"--out {out} holds the images themselves; choose another folder.")
    there = {path.name for path in out.iterdir()} if out.is_dir() else set()
    strange = sorted(name for name in there - RESULTS if name[0] != ".")
    if strange:
        raise UserError(f"--out {out} holds other files ('{strange[0]}'); choose another folder.")
    try:
        for name in ("maps", "overlays"):
            (out / name).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make {out} ({error.strerror}); choose another --out.") from error


def _write(out: Path, path: Path, image: Picture, map: Map, threshold: float) -> None:
    write_map(out / "maps" / f"{path.stem}.png", map)
    drawn = overlay(image[None], map[None], threshold)[0]
    write_image(out / "overlays" / f"{path.stem}.png", drawn)


def _digits(value: object, digits: int = 6) -> object:
    return round(value, digits) if isinstance(value, float) else value


if __name__ == "__main__":
    core.config.run_program(main, Config, prog="python -m detector.diagnose")
