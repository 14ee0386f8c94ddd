"""Weights of a SegFormer from elsewhere in; a folder that `load_detector` reads out.

    diffdoctor detector convert ad_pytorch_model.bin --out detectors/released

Read: the released DiffDoctor detector and any other state of transformers 4, of transformers 5 and
of segmentation-models-pytorch; as .bin, .pth or .safetensors, or a folder with `config.json`.
smp's blocks normalise with an epsilon of 1e-6, here it is 1e-5 everywhere: about 1e-4 of a logit.
"""

from pathlib import Path
from typing import Annotated, Any, NamedTuple

import safetensors
import safetensors.torch
import tyro
from pydantic import Field
from torch import Tensor

import core.config
from core.errors import UserError
from core.storage import check_writable, read_json, sha256_file
from detector.key_layouts import LAYOUTS, layout_of, without_prefix
from detector.pickled import read_pickled
from detector.segformer import (
    VARIANTS,
    SegformerConfig,
    SegformerDetector,
    canonical_state,
    load_canonical_state,
)
from detector.storage import (
    DESCRIPTION,
    TENSORS,
    check_segformer,
    read_description,
    save_detector,
)

PUBLISHED_SIZE = 512
"""Shorter side in pixels that the published detector takes."""
NAMES = ("model.safetensors", "pytorch_model.bin")
"""Of the weights in a folder, the first that is there."""
PICKLED = (".bin", ".pth", ".pt")
COUNTED = "num_batches_tracked"
"""The one tensor that is a single number."""
CODE_LICENCE = "The network code is transformers' SegFormer (Apache-2.0)."
ENCODER_LICENCE = (
    "Weights whose encoder started from nvidia/mit-* or nvidia/segformer-* are non-commercial "
    "(NVIDIA Source Code License), whatever else they are under."
)


class Config(core.config.Config):
    """Bring a SegFormer detector from elsewhere into a folder of this project."""

    source: Annotated[Path, tyro.conf.Positional, core.config.placed("WEIGHTS")]
    """The weights (.bin, .pth, .pt, .safetensors), or the folder with them and config.json."""
    out: Path
    """Folder for the detector."""
    variant: str | None = None
    """`mit_b0` .. `mit_b5` or `nano`; by default what the shapes say."""
    input_size: int | None = Field(None, ge=0)
    """Shorter side that the network sees, 0 for images as they are (default: 512, the published
    detector's; for nano as they are)."""
    licence: str = ""
    """Of the weights, for the card."""


class Origin(NamedTuple):
    """Where weights are, and what a library said of them."""

    weights: Path
    said: dict[str, Any]
    """Of `config.json`; empty without one."""


def main(config: Config) -> None:
    """Check, read, rename, write."""
    if config.variant is not None and config.variant not in VARIANTS:
        raise UserError(f"there is no variant {config.variant!r}: known are {', '.join(VARIANTS)}.")
    origin = find(config.source.expanduser())
    out = config.out.expanduser()
    digest = sha256_file(origin.weights)
    check_out(out, digest)
    folder = convert(
        origin, out, digest, config.variant, input_size=config.input_size, licence=config.licence
    )
    said = read_description(folder)
    variant, layout = check_segformer(folder).variant, said.card["converted"]["layout"]
    print(f"{folder}: {variant} from the layout of {layout}, {said.sha256[:12]}")


def convert(
    origin: Origin,
    out: Path,
    digest: str,
    variant: str | None = None,
    *,
    input_size: int | None = None,
    licence: str = "",
    **card: Any,
) -> Path:
    """The folder, with a card that says where it came from; raises `UserError`."""
    path = origin.weights
    layout, state = canonical(read_weights(path), path)
    check_finite(state, path)
    found = variant or variant_of(state, path)
    check_said(origin.said, found, path)
    size = (None if found == "nano" else PUBLISHED_SIZE) if input_size is None else input_size
    detector = build(state, SegformerConfig(variant=found, input_size=size or None), path)
    weights = f"Licence of the weights: {licence or 'not stated, ask where they came from'}."
    said = {
        "licence": f"{CODE_LICENCE} {weights} {ENCODER_LICENCE}",
        "initial": path.name,
        "converted": {"file": path.name, "sha256": digest, "layout": layout},
        **card,
    }
    return save_detector(detector, out, said)


def find(source: Path) -> Origin:
    """The weights of a file or folder; raises `UserError` where there are none."""
    if source.is_file() and source.suffix in (*PICKLED, ".safetensors"):
        return Origin(source, {})
    if not source.is_dir():
        there = "is no .bin, .pth or .safetensors" if source.exists() else "does not exist"
        raise UserError(f"{source} {there}: name a file of weights or the folder that holds it.")
    if (source / DESCRIPTION).is_file():
        raise UserError(f"{source} is a detector of this project already: use it as it is.")
    weights = next((source / name for name in NAMES if (source / name).is_file()), None)
    if weights is None:
        raise UserError(f"{source} has no {' or '.join(NAMES)}: name the file of weights itself.")
    said = read_json(source / "config.json")
    kind = said.get("model_type")
    if kind not in ("segformer", None):  # smp's own config.json names no type
        raise UserError(f"{source} is a {kind}, not a segformer: name another folder.")
    return Origin(weights, said)


def check_out(folder: Path, digest: str) -> None:
    """Refuse a folder with anything but an earlier conversion of the same weights."""
    check_writable(folder)
    found = {path.name for path in folder.glob("[!.]*")}
    strange = sorted(found - {TENSORS, DESCRIPTION})
    if strange:
        raise UserError(f"{folder} holds other files ('{strange[0]}'): name an empty folder.")
    if DESCRIPTION in found:
        former = read_description(folder).card.get("converted") or {}
        if former.get("sha256") != digest:
            raise UserError(f"{folder} holds another detector: name an empty folder.")


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a file by name; floating ones in float32."""
    if path.suffix in PICKLED:
        state = read_pickled(path)
    else:
        try:
            state = safetensors.torch.load(path.read_bytes())
        except safetensors.SafetensorError as error:
            raise UserError(f"{path} is damaged: copy or download it again.") from error
    bare = next((n for n, t in state.items() if t.ndim == 0 and not n.endswith(COUNTED)), None)
    if bare is not None:
        raise UserError(f"'{bare}' of {path} is a single number, no weight: name another file.")
    return {name: t.float() if t.is_floating_point() else t for name, t in state.items()}


def canonical(state: dict[str, Tensor], path: Path) -> tuple[str, dict[str, Tensor]]:
    """The layout's name, and the tensors by the names of transformers 5."""
    try:
        state = without_prefix(state)
        layout = layout_of(state)
        if layout is None:
            raise KeyError(next(iter(state), "none at all"))
        return layout, LAYOUTS[layout](state)
    except KeyError as error:
        raise UserError(
            f"{path} has an unexpected tensor {error}: it is no SegFormer of transformers or of "
            "segmentation-models-pytorch with a mit_b* encoder; name another file."
        ) from error


def check_finite(state: dict[str, Tensor], path: Path) -> None:
    lost = next((name for name, t in state.items() if not bool(t.isfinite().all())), None)
    if lost is not None:
        raise UserError(f"'{lost}' of {path} is not finite: use an earlier state of the weights.")


def variant_of(state: dict[str, Tensor], path: Path) -> str:
    """The variant that has these widths, depths and head; raises `UserError` for none."""
    stages = range(4)
    embedded = [state.get(f"segformer.stages.{i}.patch_embeddings.proj.weight") for i in stages]
    depths = [len({n.split(".")[4] for n in state if _in_blocks(n, i)}) for i in stages]
    fuse = state.get("decode_head.linear_fuse.weight")
    shape = ([len(t) for t in embedded if t is not None], depths, 0 if fuse is None else len(fuse))
    for name, known in VARIANTS.items():
        if shape == (known["hidden_sizes"], known["depths"], known["decoder_hidden_size"]):
            return name
    raise UserError(
        f"{path} is of no known variant (widths {shape[0]}, depths {shape[1]}, head {shape[2]}): "
        "name the one that it should be with --variant, to hear which tensor differs."
    )


def check_said(said: dict[str, Any], variant: str, path: Path) -> None:
    """What `config.json` says beyond the shapes (heads, strides) must be the variant's."""
    for name, value in VARIANTS[variant].items():
        if name != "drop_path_rate" and said.get(name, value) != value:
            raise UserError(
                f"config.json beside {path} has {name} {said[name]}, a {variant} has {value}: "
                "these weights cannot be used here."
            )


def build(state: dict[str, Tensor], config: SegformerConfig, path: Path) -> SegformerDetector:
    """The detector; raises `UserError` that names the first tensor that does not fit."""
    detector = SegformerDetector(config)
    wanted = canonical_state(detector)
    counted = f"decode_head.batch_norm.{COUNTED}"  # older files have none, nothing reads it
    state = {counted: wanted[counted], **state}
    for name, tensor in wanted.items():
        if name not in state:
            raise UserError(
                f"{path} lacks the tensor '{name}' of a {config.variant}: copy it again."
            )
        if state[name].shape != tensor.shape:
            shapes = f"{tuple(state[name].shape)}, a {config.variant} has {tuple(tensor.shape)}"
            raise UserError(f"'{name}' of {path} is {shapes}: name another --variant or file.")
    extra = next((name for name in state if name not in wanted), None)
    if extra is not None:
        raise UserError(f"{path} has a tensor '{extra}' that no {config.variant} has.")
    load_canonical_state(detector, state)
    return detector.eval()


def _in_blocks(name: str, stage: int) -> bool:
    return name.startswith(f"segformer.stages.{stage}.blocks.")


if __name__ == "__main__":
    core.config.run_program(main, Config, prog="python -m detector.convert")
