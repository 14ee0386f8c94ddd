"""The presets in, what each would need, counted by `diffdoctor estimate`, out; nothing is run.

    python -m benchmarks.preset_table --json counted.json

Bases are folders with the released shapes' configs and no weights (FLUX.1, SDXL and Kolors with
their text encoders); the tokenizers are the miniature's, padded to the released lengths. Detector
and second detector are SegFormer-b5 at 512 pixels; lock and offline term are on. Some minutes a
preset on one core.
"""

import json
import shutil
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.transformers.transformer_flux import FluxTransformer2DModel
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from rich.console import Console
from rich.table import Table

import core.config
from benchmarks.full_shapes import B5, FULL
from core.errors import UserError
from core.explain import unknown_name
from core.run import plain
from core.storage import write_atomic
from detector.segformer import SegformerConfig, SegformerDetector
from detector.storage import save_detector
from miniature.bases import base_folder
from treat import settings
from treat.estimate import GIB, ONCE, Estimate, estimate

PRESETS = Path(settings.__file__).parent / "presets"
CLIP_L = {
    "vocab_size": 49408,
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "projection_dim": 768,
}
CLIP_G = {
    "vocab_size": 49408,
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_hidden_layers": 32,
    "num_attention_heads": 20,
    "projection_dim": 1280,
    "hidden_act": "gelu",
}
T5_XXL = {
    "vocab_size": 32128,
    "d_model": 4096,
    "d_kv": 64,
    "d_ff": 10240,
    "num_layers": 24,
    "num_heads": 64,
    "feed_forward_proj": "gated-gelu",
    "is_gated_act": True,
    "dense_act_fn": "gelu_new",
    "relative_attention_num_buckets": 32,
    "relative_attention_max_distance": 128,
}
CHATGLM = {
    "padded_vocab_size": 65024,
    "vocab_size": 65024,
    "hidden_size": 4096,
    "ffn_hidden_size": 13696,
    "num_layers": 28,
    "num_attention_heads": 32,
    "kv_channels": 128,
    "multi_query_group_num": 2,
    "seq_length": 32768,
}
ENCODERS: dict[str, dict[str, dict[str, Any]]] = {
    "flux": {"text_encoder": CLIP_L, "text_encoder_2": T5_XXL},
    "sdxl": {"text_encoder": CLIP_L, "text_encoder_2": CLIP_G},
    "kolors": {"text_encoder": CHATGLM},
}
"""openai/clip-vit-large-patch14, laion's ViT-bigG-14, google's t5-v1_1-xxl, THUDM's chatglm3-6b."""
MINIATURE = {"flux": "newest", "sdxl": "sdxl", "kolors": "kolors"}


class Config(core.config.Config):
    """Which presets."""

    only: tuple[str, ...] = ()
    """Names; all of them unless given."""
    json_file: core.config.JsonFile = None
    """Also write the figures here."""


def main(config: Config) -> None:
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        top = Path(folder)
        save_detector(SegformerDetector(SegformerConfig(**B5)), top / "detector", {})
        (top / "prompts.txt").write_text("a hand\n")
        for name in chosen(config.only):
            found[name] = count(name, save_configs(top, name.split("-")[0]), top)
            print(f"{name}: {found[name].peak / GIB:.1f} GiB", flush=True)
            if config.json_file:
                counted = {name: asdict(one) for name, one in found.items()}
                text = json.dumps(plain(counted), indent=2) + "\n"
                write_atomic(config.json_file, text.encode())
    Console(width=200).print(table(found))


def chosen(only: tuple[str, ...]) -> list[str]:
    known = core.config.presets(settings.Config)
    for name in only:
        if name not in known:
            raise UserError(unknown_name(name, known, "--only"))
    return [name for name in known if not only or name in only]


def save_configs(top: Path, family: str) -> Path:
    """A pipeline folder of the released shape without its weights."""
    folder, shape = top / family, FULL[family]
    if folder.exists():
        return folder
    ignored = shutil.ignore_patterns("*.safetensors")
    shutil.copytree(base_folder(MINIATURE[family]), folder, ignore=ignored)
    with torch.device("meta"):
        AutoencoderKL(**shape.vae).save_config(folder / "vae")
        if family == "flux":
            FluxTransformer2DModel(**shape.network).save_config(folder / "transformer")
        else:
            UNet2DConditionModel(**shape.network).save_config(folder / "unet")
    for name, encoder in ENCODERS[family].items():
        path = folder / name / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | encoder))
    if family == "flux":  # the others have their lengths already
        path = folder / "tokenizer_2/tokenizer_config.json"
        longer = {"model_max_length": shape.text[0]}
        path.write_text(json.dumps(json.loads(path.read_text()) | longer))
    return folder


def count(name: str, base: Path, top: Path) -> Estimate:
    """One preset as `diffdoctor estimate` counts it."""
    given = core.config.read_yaml(PRESETS / f"{name}.yaml") | {
        "base": str(base),
        "prompts": top / "prompts.txt",
        "offline": top,
        "detector": top / "detector",
        "second_detector": top / "detector",
        "lock_weight": 30.0,
        "lock_inside": 1.0,
        "out": top / "run",
    }
    return estimate(core.config.from_mapping(settings.Config, given))


def table(found: dict[str, Estimate]) -> Table:
    """GiB of each phase, the largest of a preset marked; the arithmetic of one image."""
    shown = Table(title="GiB at the peak of each phase")
    for name in ("", *found):
        shown.add_column(name, justify="right" if name else "left")
    phases = dict.fromkeys(name for one in found.values() for name in one.phases)
    for phase in phases:
        shown.add_row(phase, *(gib(one, phase) for one in found.values()))
    images = {name: core.config.read_yaml(PRESETS / f"{name}.yaml")["batch"] for name in found}
    flops = (
        sum(cost.flops for phase, cost in one.phases.items() if phase not in ONCE) / images[name]
        for name, one in found.items()
    )
    shown.add_row("TFLOP an image", *(f"{each / 1e12:.0f}" for each in flops))
    return shown


def gib(one: Estimate, phase: str) -> str:
    if phase not in one.phases:
        return ""
    peak = one.phases[phase].peak
    return f"[bold]{peak / GIB:.1f}[/]" if peak == one.peak else f"{peak / GIB:.1f}"


if __name__ == "__main__":
    core.config.run_program(main, Config, prog="python -m benchmarks.preset_table")
