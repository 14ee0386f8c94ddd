"""A folder of drawn rows in; every row's figures and its paired differences to the first out.

What is one figure an image (the oracle's, precision; recall and coverage for a real image) has the
paired bootstrap of `treat.figures`. FID has 1.96 deviations of resamples that take the same images
of every row. What a row costs is the ratio of its seconds to plain sampling's, resampled by
batches.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from core.storage import read_json
from detector.features import Features
from detector.set_metrics import Fid, covered, inside, interval, kid, resamples
from treat import figures
from treat.arms import BASE
from treat.compare import METHOD, vectors_of
from treat.offline import read_offline

BATCH = 100
"""Images that the feature network sees at once."""
PERCENT = ("precision", "recall", "coverage", "artifact_frequency", "artifact_area")


def compared(
    folder: Path, names: Sequence[str], network: Features, number: int, seed: int
) -> dict[str, Any]:
    """`rows`: name -> figures, and against the first row; what they were measured with."""
    batches = [read_json(path) for path in sorted((folder / "batches").iterdir())]
    real = vectors_of(network, read_offline(folder / "real/images", None, False), BATCH, "real")
    seen = {
        name: vectors_of(network, read_offline(folder / "images" / name, None, False), BATCH, name)
        for name in names
    }
    tables = {name: {**joined(batches, name), "precision": inside(own, real)}
              for name, own in seen.items()}  # fmt: skip
    reached = {name: {"recall": inside(real, own), "coverage": covered(real, own)}
               for name, own in seen.items()}  # fmt: skip
    fid = Fid(real)
    fids = {name: fid(own) for name, own in seen.items()}
    drawn = {name: [fid(own[rows]) for rows in resamples(len(own), number, seed)]
             for name, own in seen.items()}  # fmt: skip
    rows = {}
    for name in names:
        mean, deviation = kid(real, seen[name], seed)
        row = figures.summarise(tables[name], seed)
        reach = figures.summarise(reached[name], seed)
        row |= {"fid": fids[name], "kid": mean, "kid_deviation": deviation}
        row |= {share: reach[share] for share in reached[name]} | cost(batches, name, seed)
        row["interval"] |= {"fid": interval(fids[name], drawn[name]), **reach["interval"]}
        row["changed"] = float(np.mean([x for one in batches for x in one["changed"][name]]))
        if name != BASE:
            apart = fids[name] - fids[BASE]
            pairs = [a - b for a, b in zip(drawn[name], drawn[BASE], strict=True)]
            row["difference"] = {
                "fid": {"difference": apart, "interval": interval(apart, pairs)},
                **figures.compare(reached[name], reached[BASE], seed),
                **figures.compare(tables[name], tables[BASE], seed),
            }
        rows[name] = row
    features = {"name": network.name, "sha256": network.digest, "width": real.shape[1]}
    return {"features": features, "real": len(real), "method": [METHOD, figures.METHOD],
            "rows": rows}  # fmt: skip


def joined(batches: Sequence[Mapping[str, Any]], name: str) -> dict[str, np.ndarray]:
    """One row's table of all images."""
    parts: list[figures.Table] = []
    for one in batches:
        columns = one["tables"][name].items()
        parts.append({column: readable(values) for column, values in columns})
    return figures.joined(parts)


def readable(values: Sequence[Any]) -> np.ndarray:
    """A column as it was before JSON, which knows no NaN."""
    return np.array([np.nan if value is None else value for value in values])


def cost(batches: Sequence[Mapping[str, Any]], name: str, seed: int) -> dict[str, Any]:
    """Seconds an image, and how many times plain sampling's with its interval."""
    own, base = (np.array([one["seconds"][arm] for one in batches]) for arm in (name, BASE))
    apart = figures.compare({"seconds": own}, {"seconds": base}, seed)["seconds"]
    return {
        "seconds": float(own.mean()),
        "cost": 1 + apart["relative_difference"],
        "cost_interval": [1 + end for end in apart["relative_interval"]],
    }


def markdown(found: Mapping[str, Any], titles: Mapping[str, str]) -> str:
    """The table, then every row's differences to the first; intervals are 95 %."""
    name, rows = found["features"]["name"], found["rows"]
    heads = ["", f"FID ({name})", "KID x1000", "precision", "recall", "coverage",
             "artifact frequency", "artifact area", "changed", "cost"]  # fmt: skip
    own = [[titles[row], *figures_of(one)] for row, one in rows.items()]
    apart = [[titles[row], *changes_of(one)] for row, one in rows.items() if row != BASE]
    said = (
        f"{found['images']:,} images a row of {Path(found['base']).name}, "
        f"{found['sampling_steps']} steps, the same seeds; {found['real']:,} sound renders as real "
        f"ones; features: {name}; artifacts by {found['judge']}; cost: times the seconds of plain "
        "sampling in the same process; changed: share of the area. 95 % intervals in brackets."
    )
    return "\n\n".join(
        [said, lines(heads, own), f"Less {titles[BASE]}:", lines(heads[:2] + heads[3:8], apart)]
    ) + "\n"  # fmt: skip


def figures_of(row: Mapping[str, Any]) -> list[str]:
    ends = row["interval"]
    low, high = row["cost_interval"]
    return [
        bracketed(row["fid"], ends["fid"], "{:.3f}"),
        f"{1000 * row['kid']:.3f} ± {1000 * row['kid_deviation']:.3f}",
        *(bracketed(row[name], ends[name], "{:.2%}") for name in PERCENT),
        f"{row['changed']:.1%}",
        f"{row['cost']:.3f} [{low:.3f}, {high:.3f}]",
    ]


def changes_of(row: Mapping[str, Any]) -> list[str]:
    """Of shares in points."""
    apart = row["difference"]
    points = [(100 * apart[name]["difference"], [100 * end for end in apart[name]["interval"]])
              for name in PERCENT]  # fmt: skip
    return [
        bracketed(apart["fid"]["difference"], apart["fid"]["interval"], "{:+.3f}"),
        *(bracketed(value, ends, "{:+.2f}") for value, ends in points),
    ]


def bracketed(value: float, ends: Sequence[float] | None, style: str) -> str:
    said = style.format(value)
    return said if ends is None else f"{said} [{', '.join(style.format(end) for end in ends)}]"


def lines(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of Markdown."""
    parts = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(part) + " |" for part in parts)
