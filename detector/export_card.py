"""A detector, its description and its figures in; the README of a model hub out."""

from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from detector.segformer import SegformerDetector
from detector.storage import Description

MADE_BY = "marks the artifacts of generated images pixel by pixel"
"""In the text of every card."""
COLUMNS = {
    "images": "images",
    "pixel_ap": "pixel AP",
    "iou": "IoU",
    "f1": "F1",
    "calibration_error": "ECE",
    "image_auroc": "image AUROC",
    "false_positive_images": "FP images",
}


def card(
    title: str,
    license: str,
    detector: SegformerDetector,
    description: Description,
    figures: Mapping[str, Any],
    formats: Sequence[str],
) -> str:
    """What it is, what it may be used for, what it was taught and measured on, how to use it."""
    front = {
        "pipeline_tag": "image-segmentation",
        **({"library_name": "transformers"} if "transformers" in formats else {}),
        **({"license": license} if license else {}),
        "tags": ["artifact-detection", "diffdoctor", "segformer"],
    }
    said = description.card
    parts = [
        CARD_TEXT.format(title=title, variant=detector.config.variant, cell=detector.multiple),
        f"## Licence\n\n{said.get('licence', 'Not stated.')}\n",
        f"## Data\n\n{data(said)}\n",
        f"## Calibration and figures\n\n{calibration(said, figures)}\n",
    ]
    if "program" in formats:
        parts.append(f"## Use without any project\n\n```python\n{snippet(detector)}```\n{TRUST}\n")
    if "transformers" in formats:
        parts.append(TRANSFORMERS_TEXT.format(enlarged=enlarged(detector)))
    if "onnx" in formats:
        parts.append(ONNX_TEXT)
    parts.append(f"## Origin\n\nsha256 of the tensors: `{description.sha256}`.\n")
    top = yaml.safe_dump(front, sort_keys=False, allow_unicode=True)
    return f"---\n{top}---\n" + "\n".join(parts)


def snippet(detector: SegformerDetector) -> str:
    """Fifteen lines from a picture to its map; only torch, numpy and Pillow."""
    size = detector.config.input_size
    scale = "1" if size is None else f"{size} / min(height, width)"
    return SNIPPET.format(scale=scale, cell=detector.multiple)


def enlarged(detector: SegformerDetector) -> str:
    factor = detector.config.upscale
    return "" if factor == 1 else f" Enlarge the images {factor} times (bilinear) before it."


def data(said: Mapping[str, Any]) -> str:
    """Names of the sets and counts, as the training noted them."""
    lines = []
    if said.get("data"):
        lines.append(f"Sets: {', '.join(map(str, said['data']))}.")
    for kind, counts in (said.get("samples") or {}).items():
        if isinstance(counts, Mapping):
            lines.append(f"{kind}: {listed(counts)}.")
    if said.get("initial"):
        lines.append(f"Started from the weights of `{said['initial']}`.")
    if said.get("made_by"):
        lines.append(f"Made by `{said['made_by']}`.")
    return "\n".join(f"- {line}" for line in lines) or "Not stated."


def listed(counts: Mapping[str, Any]) -> str:
    words = []
    for name, value in counts.items():
        inner = isinstance(value, Mapping)
        words.append(f"{name} ({listed(value)})" if inner else f"{name or '(none)'} {value}")
    return ", ".join(words) or "none"


def calibration(said: Mapping[str, Any], figures: Mapping[str, Any]) -> str:
    """The evaluation's table by category; without one, what the training saw on its held-out."""
    if figures:
        groups = [
            (kind if name == "all" else f"{kind} {name}", values)
            for kind in ("overall", "category", "source", "generator")
            for name, values in (figures.get(kind) or {}).items()
        ]
        note = f"A pixel counts as flagged from {figures.get('threshold', 0.5)}."
    elif said.get("held_out"):
        groups, note = [("held out in training", said["held_out"])], "No further evaluation."
    else:
        return "Not measured: the map's values are no probabilities that anybody has checked."
    head = ["group", *COLUMNS.values()]
    rows = [[name, *(cell(values.get(key)) for key in COLUMNS)] for name, values in groups]
    lines = [head, ["---"] * len(head), *rows]
    table = "\n".join(f"| {' | '.join(row)} |" for row in lines)
    return f"{note} ECE is the expected calibration error of the map's values.\n\n{table}"


def cell(value: Any) -> str:
    if not isinstance(value, int | float) or value != value:
        return "-"
    return str(int(value)) if float(value).is_integer() and value > 1 else f"{value:z.3f}"


CARD_TEXT = """# {title}

A SegFormer (`{variant}`) that marks the artifacts of generated images pixel by pixel: an image in
0..1 in, a map of the same size in 0..1 out. Sides are brought to multiples of {cell} first.
"""
UNFINISHED = f"""# Unfinished

What stands here will be a detector that {MADE_BY}; its export was stopped.
Run the same command again.
"""
SNIPPET = """\
import numpy as np
import torch
from PIL import Image
from torch.nn.functional import interpolate

program = torch.export.load("detector.pt2").module()
picture = np.array(Image.open("picture.png").convert("RGB"))
images = torch.from_numpy(picture).permute(2, 0, 1)[None] / 255
height, width = images.shape[-2:]
scale = {scale}
sides = [max(1, round(side * scale / {cell})) * {cell} for side in (height, width)]
fitted = interpolate(images, sides, mode="bilinear", antialias=True)
with torch.no_grad():
    logits = program(fitted)[1]
heat = torch.sigmoid(interpolate(logits, (height, width), mode="bilinear"))[0, 0]
Image.fromarray((heat * 255).round().byte().numpy()).save("artifacts.png")
"""
TRUST = """
`detector.pt2` holds no pickle, but `torch.export.load` runs one where it finds one: open such files
only from a source that you trust, or take the safetensors.
"""
TRANSFORMERS_TEXT = """## transformers

`SegformerForSemanticSegmentation.from_pretrained("THIS_FOLDER/transformers")` gives the logits of
one label: a sigmoid makes the map. It takes what its `AutoImageProcessor` makes of an image (mean
and deviation of ImageNet), not 0..1.{enlarged}
"""
ONNX_TEXT = """## ONNX

`detector.onnx`: `images` (b, 3, h, w) in 0..1 with the sides above -> `map` (b, 1, h, w), `logits`.
"""
