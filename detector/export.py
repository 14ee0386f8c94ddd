"""A detector's run in; one folder that any project can use, without this one, out.

`detector.safetensors` and `detector.json` are this project's own; `transformers/` opens in plain
transformers; `detector.pt2` is a program of torch.export and `detector.onnx` a graph, both from
images in 0..1 to logits and map; the card holds licence, data, figures and a snippet.
"""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

from core.errors import UserError
from core.hub import check_push, push
from core.storage import alone, check_writable, write_atomic
from detector.export_card import MADE_BY, UNFINISHED, card
from detector.export_graph import (
    ONNX_EXTRA,
    check_onnx,
    exported,
    missing_for_onnx,
    write_onnx,
    write_program,
)
from detector.export_plain import write_transformers
from detector.export_settings import Config
from detector.names import Format
from detector.segformer import VARIANTS, SegformerDetector, freeze
from detector.storage import DESCRIPTION, TENSORS, load_detector, located, read_description

PLAIN, PROGRAM, GRAPH, CARD = "transformers", "detector.pt2", "detector.onnx", "README.md"


def main(config: Config) -> None:
    """Check everything, then write; push, if asked."""
    if config.push:
        check_push(config.push)
    evaluation = config.evaluation.expanduser() if config.evaluation else None
    paths = {"run": config.run.expanduser(), "out": config.out.expanduser().resolve()}
    config = config.model_copy(update={**paths, "evaluation": evaluation})
    source = located(config.run)
    check_out(config.out, source)
    asked = writable() if config.formats is None else config.formats
    if "onnx" in asked:
        check_onnx()
    detector = freeze(load_detector(config.run))
    check_finite(detector, config.run)
    description = read_description(config.run)
    figures = read_figures(config.evaluation, description.sha256)
    formats = possible(asked, detector.config.variant)

    text = card(config.title, config.license, detector, description, figures, formats)
    config.out.mkdir(parents=True, exist_ok=True)
    with alone(config.out / ".export.lock", f"another export is writing {config.out}: wait."):
        write(config.out, source, detector, formats, text)
    print(f"{config.out}: detector {description.sha256[:12]}, {', '.join(('own', *formats))}")
    if config.push:
        load_detector(config.out)  # verified once more, as others will read it
        message = f"{config.title}, by diffdoctor export"
        print(f"pushed to {push(config.out, config.push, message)}")


def write(
    folder: Path, source: Path, detector: SegformerDetector, formats: Sequence[str], text: str
) -> None:
    """Each form, held against the detector as it is written; the card comes last."""
    write_atomic(folder / CARD, UNFINISHED.encode())
    clear(folder)
    for name in (TENSORS, DESCRIPTION):
        write_atomic(folder / name, (source / name).read_bytes())
    if "transformers" in formats:
        write_transformers(detector, folder / PLAIN)
    graph = exported(detector) if {"program", "onnx"} & set(formats) else None
    if graph is not None and "program" in formats:
        write_program(graph, detector, folder / PROGRAM)
    if graph is not None and "onnx" in formats:
        write_onnx(graph, detector, folder / GRAPH)
    write_atomic(folder / CARD, text.encode())


def check_out(folder: Path, source: Path) -> None:
    """Refuse a folder with anything but an earlier export, and the one that is exported."""
    check_writable(folder)
    found = {path.name for path in folder.glob("[!.]*")}
    strange = sorted(found - {TENSORS, DESCRIPTION, PLAIN, PROGRAM, GRAPH, CARD})
    readme = folder / CARD
    if found and not (readme.is_file() and MADE_BY in readme.read_text(errors="replace")):
        strange = sorted(found)  # our names alone do not make it ours
    if strange:
        raise UserError(f"{folder} holds other files ('{strange[0]}'): name an empty folder.")
    if source.resolve().is_relative_to(folder.resolve()):
        raise UserError(f"{source} lies in {folder}: name another --out.")


def check_finite(detector: SegformerDetector, path: Path) -> None:
    """Raise `UserError` where a weight is no number: every form would be as broken."""
    lost = [name for name, t in detector.state_dict().items() if not bool(t.isfinite().all())]
    if lost:
        raise UserError(f"'{lost[0]}' of {path} is not finite: export an earlier detector.")


def clear(folder: Path) -> None:
    """Remove what an earlier export left: what is half new is not described by what was old."""
    for name in (PROGRAM, GRAPH):
        (folder / name).unlink(missing_ok=True)
    for left in folder.glob(".*.tmp"):  # by an export that was stopped while it wrote
        left.unlink()
    shutil.rmtree(folder / PLAIN, ignore_errors=True)


def writable() -> tuple[str, ...]:
    """Every format; without what writes ONNX all but that one, and a line that says so."""
    if not missing_for_onnx():
        return get_args(Format)
    print(f"ONNX is left out, for this installation cannot write it: {ONNX_EXTRA} adds it.")
    return tuple(one for one in get_args(Format) if one != "onnx")


def possible(formats: Sequence[str], variant: str) -> tuple[str, ...]:
    """transformers has no network for smp's other encoders; raises where nothing else is asked."""
    kept = tuple(one for one in formats if one != "transformers" or variant in VARIANTS)
    if formats and not kept:
        raise UserError(f"transformers has no {variant}: ask for --formats program onnx.")
    return kept


def read_figures(path: Path | None, sha256: str) -> dict[str, Any]:
    """What `diffdoctor detector evaluate --json` wrote of this very detector."""
    if path is None:
        return {}
    try:
        said = json.loads(path.read_text())
        overall = said["overall"]["all"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path} holds no detector's figures: name the file of `diffdoctor detector evaluate "
            "--json FILE`."
        ) from error
    if said.get("detector") != sha256 or not isinstance(overall, dict):
        raise UserError(f"{path} is of another detector: evaluate this one and name its JSON.")
    return said
