"""Scores and tags in, the figures of every category and what stands out among them out."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from core.errors import UserError
from core.storage import read_lines
from data_balancing.anomalies import adjusted, against_the_rest, beta_prior, normal_prior
from data_balancing.scores import Scored
from data_balancing.taxonomy import Taxonomy

Side = Literal["high", "low"]


class Figures(BaseModel):
    """One category; a share and a mean are given as counted and as shrunk towards all others'."""

    model_config = ConfigDict(frozen=True)

    n: int
    broken: int
    """Images whose maximum reaches the threshold."""
    rate: float
    rate_shrunk: float
    rate_interval: tuple[float, float]
    max: float
    max_shrunk: float
    area: float
    area_shrunk: float
    sound: int
    """Images that are known to be sound, and how many of them count as broken."""
    false_positives: int
    false_positive_rate: float | None
    false_positive_shrunk: float | None
    p: float | None
    p_adjusted: float | None
    above: float | None
    anomaly: Side | None
    words: str


def read_tags(path: Path, taxonomy: Taxonomy) -> dict[str, tuple[str, list[str]]]:
    """By key: the image's digest, and its categories with all that stand above them."""
    if not Path(path).is_file():
        raise UserError(f"there is no file of tags {path}; make it with `diffdoctor data tag`.")
    found = {}
    for line in read_lines(Path(path)):
        key, names = line.get("key"), line.get("categories")
        if not isinstance(key, str) or not isinstance(names, list):
            raise UserError(f"{path} holds a line without key and categories; tag again.")
        if line.get("taxonomy", taxonomy.digest) != taxonomy.digest:
            raise UserError(f"{path} was tagged by another taxonomy; name it with --taxonomy.")
        found[key] = str(line.get("pixels", "")), taxonomy.with_parents([str(n) for n in names])
    if not found:
        raise UserError(f"{path} holds no tag; tag the store again.")
    return found


def by_category(
    images: Iterable[Scored], tags: Mapping[str, tuple[str, list[str]]], taxonomy: Taxonomy
) -> dict[str, list[int]]:
    """Positions of the tagged images of each category that has any, in the taxonomy's order.

    A category that has the images of one child and no others is left out: it would say the same.
    """
    found: dict[str, list[int]] = defaultdict(list)
    for i, image in enumerate(images):
        pixels, names = tags[image.key]
        if pixels and pixels != image.score.pixels:
            raise UserError(f"the tags of {image.key} are of another image; tag the store again.")
        for name in names:
            found[name].append(i)
    doubled = {taxonomy.parents[name] for name in found
               if found[name] == found.get(taxonomy.parents[name] or "")}  # fmt: skip
    return {name: found[name] for name in taxonomy.parents if name in found and name not in doubled}


def figures(
    images: Sequence[Scored], groups: Mapping[str, Sequence[int]], threshold: float, q: float
) -> dict[str, Figures]:
    """Every category's figures; a false-discovery rate of q over the categories that are tested."""
    rows = {name: [images[i] for i in places] for name, places in groups.items()}
    sound = {name: [image for image in row if image.sound] for name, row in rows.items()}
    broken = {name: _broken(row, threshold) for name, row in rows.items()}
    wrong = {name: _broken(row, threshold) for name, row in sound.items()}
    share = beta_prior(list(broken.values()), [len(row) for row in rows.values()])
    false = beta_prior(list(wrong.values()), [len(row) for row in sound.values()])
    peak = normal_prior([[image.score.max for image in row] for row in rows.values()])
    area = normal_prior([[image.score.area for image in row] for row in rows.values()])
    tests = [against_the_rest(*by_prompt(images, places)) for places in groups.values()]
    p_adjusted = adjusted([test.p for test in tests])
    found = {}
    for (name, row), test, p in zip(rows.items(), tests, p_adjusted, strict=True):
        n, k = len(row), broken[name]
        mean_max = fmean(image.score.max for image in row)
        mean_area = fmean(image.score.area for image in row)
        anomaly: Side | None = None
        if p is not None and p <= q and test.above is not None:
            anomaly = "high" if test.above > 0.5 else "low"
        found[name] = Figures(
            n=n,
            broken=k,
            rate=k / n,
            rate_shrunk=share.shrunk(k, n),
            rate_interval=share.interval(k, n),
            max=mean_max,
            max_shrunk=peak.shrunk(mean_max, n),
            area=mean_area,
            area_shrunk=area.shrunk(mean_area, n),
            sound=len(sound[name]),
            false_positives=wrong[name],
            false_positive_rate=wrong[name] / len(sound[name]) if sound[name] else None,
            false_positive_shrunk=false.shrunk(wrong[name], len(sound[name]))
            if sound[name]
            else None,
            p=test.p,
            p_adjusted=p,
            above=test.above,
            anomaly=anomaly,
            words=in_words(name, k, n, anomaly),
        )
    return found


def overall(images: Sequence[Scored], threshold: float) -> dict[str, Any]:
    """The figures of the whole."""
    sound = [image for image in images if image.sound]
    return {
        "n": len(images),
        "broken": _broken(images, threshold),
        "rate": _broken(images, threshold) / len(images),
        "max": fmean(image.score.max for image in images),
        "area": fmean(image.score.area for image in images),
        "sound": len(sound),
        "false_positives": _broken(sound, threshold),
    }


def by_prompt(images: Sequence[Scored], places: Sequence[int]) -> tuple[list[float], list[float]]:
    """Maxima inside and outside; images of one prompt are one value, their mean.

    Two images of a prompt are no two witnesses: counted singly they would make p-values too small.
    """
    inside, sides = set(places), (defaultdict(list), defaultdict(list))
    for i, image in enumerate(images):
        name = image.prompt.strip().lower() or f"\n{image.key}"
        sides[i not in inside][name].append(image.score.max)
    return tuple([fmean(values) for values in side.values()] for side in sides)  # pyright: ignore


def in_words(name: str, k: int, n: int, anomaly: Side | None) -> str:
    """One sentence that a person understands without the figures; empty where nothing is odd."""
    name = name.replace("_", " ")
    if anomaly is None:
        return ""
    if anomaly == "high":
        many = "every" if k == n else "nearly every" if k >= 0.9 * n else "more than its share of"
    else:
        many = "no" if k == 0 else "hardly any" if k <= 0.1 * n else "less than its share of"
    return f"{many} {name} counts as broken ({k} of {n})"


def _broken(images: Sequence[Scored], threshold: float) -> int:
    return sum(image.score.max >= threshold for image in images)
