"""A detector in; a folder that plain transformers opens with `from_pretrained` out."""

import json
from pathlib import Path

import torch
from safetensors.torch import save as save_tensors
from transformers import SegformerForSemanticSegmentation

from core.errors import UserError
from core.storage import write_atomic
from detector.segformer import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    SegformerDetector,
    canonical_state,
    transformers_config,
)

LABELS = {0: "artifact"}


def write_transformers(detector: SegformerDetector, folder: Path) -> None:
    """`model.safetensors`, `config.json` and the image processor's settings; opened once more.

    One label, so a sigmoid and no softmax. The processor scales and normalises; sizes are left to
    the reader, who also enlarges where the detector does (`upscale` in `detector.json`).
    """
    config = transformers_config(detector.config.variant)
    config.architectures = ["SegformerForSemanticSegmentation"]
    config.id2label, config.label2id = LABELS, {name: i for i, name in LABELS.items()}
    processor = {
        "image_processor_type": "SegformerImageProcessor",
        "do_resize": False,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(IMAGENET_MEAN),
        "image_std": list(IMAGENET_STD),
        "do_reduce_labels": False,
    }
    state = {name: t.detach().cpu().contiguous() for name, t in canonical_state(detector).items()}
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(folder / "config.json", (config.to_json_string(use_diff=True) + "\n").encode())
    content = json.dumps(processor, indent=2) + "\n"
    write_atomic(folder / "preprocessor_config.json", content.encode())
    write_atomic(folder / "model.safetensors", save_tensors(state, metadata={"format": "pt"}))
    opened = SegformerForSemanticSegmentation.from_pretrained(folder, local_files_only=True)
    lost = [name for name, t in opened.state_dict().items() if not torch.equal(t, state[name])]
    if lost:
        raise UserError(f"transformers opens {folder} with another '{lost[0]}': leave it out.")
