"""A detector in, one folder out: `detector.safetensors` and `detector.json`; and back, verified.

The tensors carry transformers' names whichever library computed them: one neutral
layout, readers for the others, as for adapters. `detector.json` holds the
configuration, the digest of the tensors, and the card: licence, data, seed, figures.
"""

import contextlib
import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import safetensors
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from core.errors import UserError
from core.storage import write_atomic
from detector.ensemble import Combination, Ensemble, EnsembleConfig
from detector.flaw_map import FlawMap, Highlighter, HighlighterConfig
from detector.segformer import (
    SegformerConfig,
    SegformerDetector,
    canonical_state,
    load_canonical_state,
)

TENSORS, DESCRIPTION = "detector.safetensors", "detector.json"
FORMAT = "diffdoctor-detector-1"
MAX_JSON_BYTES = 1_000_000
LICENCE_NOTES = {
    "transformers": (
        "The network code is transformers' SegFormer (Apache-2.0); weights trained from scratch on "
        "your data are yours. Weights started from nvidia/mit-* or nvidia/segformer-* are "
        "non-commercial (NVIDIA Source Code License)."
    ),
    "smp": (
        "segmentation-models-pytorch is MIT, but its MiT encoder file (mit_b0 .. mit_b5) and the "
        "nvidia/mit-* weights are under the NVIDIA Source Code License: non-commercial use only. "
        "The tensors here also load with --backend transformers (Apache-2.0 code)."
    ),
}

AnyConfig = SegformerConfig | HighlighterConfig | EnsembleConfig
Single = SegformerDetector | FlawMap


class Description(BaseModel):
    """What `detector.json` says."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: str = FORMAT
    config: AnyConfig
    sha256: str
    card: dict[str, Any] = {}


def save_detector(detector: SegformerDetector, folder: Path, card: dict[str, Any]) -> Path:
    """Write the folder (each file atomically, the description last); returns it.

    `card` is any JSON: data, seed, steps, metrics; the licence note is added.
    """
    licence = LICENCE_NOTES[detector.config.backend]
    return _save(folder, detector.config, canonical_state(detector), {"licence": licence, **card})


def save_highlighter(highlighter: Highlighter, folder: Path, card: dict[str, Any]) -> Path:
    """The same of a flaw highlighter."""
    return _save(folder, highlighter.config, highlighter.state_dict(), card)


def save_ensemble(
    detectors: Sequence[Single], combine: Combination, folder: Path, card: dict[str, Any]
) -> Path:
    """The same of several detectors: one file of all their tensors, each under its number."""
    config = EnsembleConfig(combine=combine, members=tuple(map(_config, detectors)))
    state = {f"{i}.{n}": t for i, one in enumerate(detectors) for n, t in _state(one).items()}
    backends = {c.backend for c in config.members if isinstance(c, SegformerConfig)}
    licence = " ".join(LICENCE_NOTES[backend] for backend in sorted(backends))
    return _save(folder, config, state, {"licence": licence, **card})


def load_detector(folder: Path) -> SegformerDetector:
    """The SegFormer of a folder (its own, or the run's that made it), in eval mode, verified first.

    Raises `UserError` that names the cure for a missing folder, a damaged or foreign file, a
    variant that this version does not know, and a detector of another kind.
    """
    config, (_, payload) = check_segformer(folder), _verified(folder)
    detector = SegformerDetector(config)
    with _fitting(folder, f"{config.variant} detector"):
        _take(detector, load_tensors(payload))
    return detector.eval()


def check_segformer(folder: Path) -> SegformerConfig:
    """What the SegFormer of a folder is, by its description alone; `UserError` for another."""
    config = read_description(folder).config
    if not isinstance(config, SegformerConfig):
        what = "an ensemble" if isinstance(config, EnsembleConfig) else "a flaw highlighter"
        raise UserError(
            f"{folder} is {what}, and a SegFormer is needed here: train one with "
            "`diffdoctor detector train`."
        )
    return config


def open_detector(folder: Path | str) -> Single | Ensemble:
    """Whatever detector a folder holds, as above; of a flaw highlighter its map."""
    folder = Path(folder)
    config = read_description(folder).config
    if isinstance(config, SegformerConfig):
        return load_detector(folder)
    if isinstance(config, HighlighterConfig):
        return FlawMap(load_highlighter(folder)).eval()
    _, payload = _verified(folder)
    with _fitting(folder, "ensemble"):
        detectors, state = [_untrained(member) for member in config.members], load_tensors(payload)
        for i, detector in enumerate(detectors):
            _take(detector, {n.partition(".")[2]: t for n, t in state.items() if _of(n) == str(i)})
    return Ensemble(detectors, config.combine).eval()


def untrained(config: AnyConfig) -> Single | Ensemble:
    """The detector of a description, with random weights."""
    if isinstance(config, EnsembleConfig):
        return Ensemble([_untrained(member) for member in config.members], config.combine)
    return _untrained(config)


def load_highlighter(folder: Path) -> Highlighter:
    """The flaw highlighter of a folder, in eval mode; raises `UserError` as `load_detector`."""
    if not located(folder).is_dir():
        raise UserError(
            f"there is no folder {folder} of a flaw highlighter; train one with `diffdoctor "
            "detector train-highlighter`."
        )
    description, payload = _verified(folder)
    if not isinstance(description.config, HighlighterConfig):
        raise UserError(
            f"{folder} is no flaw highlighter: train one with `diffdoctor detector "
            "train-highlighter`."
        )
    highlighter = Highlighter(description.config)
    with _fitting(folder, f"{description.config.variant} highlighter"):
        highlighter.load_state_dict(load_tensors(payload))
    return highlighter.eval()


def read_description(folder: Path) -> Description:
    """The checked `detector.json`; raises `UserError`."""
    folder = located(folder)
    if not folder.is_dir():
        raise UserError(
            f"there is no detector folder {folder}; train one with `diffdoctor detector train`."
        )
    text = _read(folder / DESCRIPTION, folder)
    try:
        description = Description.model_validate_json(text)
    except ValidationError as error:
        where = ".".join(str(part) for part in error.errors()[0]["loc"])
        raise UserError(
            f"{folder / DESCRIPTION} is damaged or of another program (at {where or 'its start'}); "
            "copy the folder again or train the detector again."
        ) from error
    if description.format != FORMAT:
        raise UserError(
            f"{folder} has the format {description.format!r}, this version reads {FORMAT!r}; "
            "update diffdoctor or train the detector again."
        )
    return description


def copy_detector(source: Path, folder: Path) -> None:
    """Its two files as they are, the description last; stopped between, the copy does not load."""
    folder.mkdir(exist_ok=True)
    for name in (TENSORS, DESCRIPTION):
        write_atomic(folder / name, _read(located(source) / name, source))


def digest(folder: Path) -> str:
    """The sha256 of the detector's tensors, as other files name it."""
    return read_description(folder).sha256


def located(folder: Path) -> Path:
    """A training run keeps its detector in `detector/`; either folder may be named."""
    inner = Path(folder) / "detector"
    return inner if (inner / DESCRIPTION).is_file() else Path(folder)


def _untrained(config: SegformerConfig | HighlighterConfig) -> Single:
    if isinstance(config, SegformerConfig):
        return SegformerDetector(config)
    return FlawMap(Highlighter(config)).eval()


def _config(detector: Single) -> SegformerConfig | HighlighterConfig:
    return detector.highlighter.config if isinstance(detector, FlawMap) else detector.config


def _state(detector: Single) -> dict[str, Tensor]:
    if isinstance(detector, FlawMap):
        return detector.highlighter.state_dict()
    return canonical_state(detector)


def _take(detector: Single, state: dict[str, Tensor]) -> None:
    """The inverse of `_state`; raises `KeyError` or `RuntimeError` where they differ."""
    if isinstance(detector, FlawMap):
        detector.highlighter.load_state_dict(state)
    else:
        load_canonical_state(detector, state)


def _of(name: str) -> str:
    """Which member of an ensemble a tensor belongs to."""
    return name.partition(".")[0]


def _save(folder: Path, config: AnyConfig, state: dict[str, Any], card: Any) -> Path:
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"cannot make {folder} ({error.strerror}); choose another place."
        ) from error
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    payload = save_tensors(state, metadata={"format": "pt"})
    sha256 = hashlib.sha256(payload).hexdigest()
    description = Description(config=config, sha256=sha256, card=card)
    write_atomic(folder / TENSORS, payload)
    write_atomic(folder / DESCRIPTION, (description.model_dump_json(indent=2) + "\n").encode())
    return folder


def _verified(folder: Path) -> tuple[Description, bytes]:
    """What a folder says of itself, and its tensors as bytes of the digest that it names."""
    folder = located(folder)
    description = read_description(folder)
    payload = _read(folder / TENSORS, folder)
    if hashlib.sha256(payload).hexdigest() != description.sha256:
        raise UserError(
            f"{folder / TENSORS} is damaged (its digest is not the one in {DESCRIPTION}); "
            "copy the folder again or train the detector again."
        )
    return description, payload


@contextlib.contextmanager
def _fitting(folder: Path, what: str) -> Iterator[None]:
    try:
        yield
    except (KeyError, RuntimeError, safetensors.SafetensorError) as error:
        raise UserError(
            f"{located(folder) / TENSORS} does not hold a {what} ({_first_line(error)}); copy "
            "the folder again or train it again."
        ) from error


def _read(path: Path, folder: Path) -> bytes:
    try:
        if path.name == DESCRIPTION and path.stat().st_size > MAX_JSON_BYTES:
            raise UserError(f"{path} is larger than {MAX_JSON_BYTES} bytes; is it a detector's?")
        return path.read_bytes()
    except OSError as error:
        raise UserError(
            f"{folder} is no complete detector folder: cannot read {path.name} "
            f"({error.strerror}); copy it again or train one with `diffdoctor detector train`."
        ) from error


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[1] if len(lines) > 1 else lines[0] if lines else "no detail")[:160]
