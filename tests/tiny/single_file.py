"""A tiny SD in one file, by the names of the original code (CompVis' latent diffusion)."""

import re
from pathlib import Path
from typing import Any

import safetensors.torch

RESNET = r"^((?:in|out)put_blocks\.\d\.0|middle_block\.[02])"
UNET = [
    (r"^time_embedding\.linear_1", "time_embed.0"),
    (r"^time_embedding\.linear_2", "time_embed.2"),
    (r"^conv_in", "input_blocks.0.0"),
    (r"^conv_norm_out", "out.0"),
    (r"^conv_out", "out.2"),
    # Two levels, one layer each: what a block holds in diffusers follows one after another there.
    (r"^down_blocks\.0\.resnets\.0", "input_blocks.1.0"),
    (r"^down_blocks\.0\.downsamplers\.0\.conv", "input_blocks.2.0.op"),
    (r"^down_blocks\.1\.resnets\.0", "input_blocks.3.0"),
    (r"^down_blocks\.1\.attentions\.0", "input_blocks.3.1"),
    (r"^mid_block\.resnets\.0", "middle_block.0"),
    (r"^mid_block\.attentions\.0", "middle_block.1"),
    (r"^mid_block\.resnets\.1", "middle_block.2"),
    (r"^up_blocks\.0\.resnets\.", "output_blocks.N."),
    (r"^up_blocks\.0\.attentions\.(\d)", r"output_blocks.\1.1"),
    (r"^up_blocks\.0\.upsamplers\.0", "output_blocks.1.2"),
    (r"^up_blocks\.1\.resnets\.0", "output_blocks.2.0"),
    (r"^up_blocks\.1\.resnets\.1", "output_blocks.3.0"),
    (r"^output_blocks\.N\.(\d)", r"output_blocks.\1.0"),
    (RESNET + r"\.norm1", r"\1.in_layers.0"),
    (RESNET + r"\.conv1", r"\1.in_layers.2"),
    (RESNET + r"\.norm2", r"\1.out_layers.0"),
    (RESNET + r"\.conv2", r"\1.out_layers.3"),
    (r"time_emb_proj", "emb_layers.1"),
    (r"conv_shortcut", "skip_connection"),
]
VAE = [
    (r"down_blocks\.(\d)\.resnets", r"down.\1.block"),
    (r"down_blocks\.(\d)\.downsamplers\.0", r"down.\1.downsample"),
    (r"up_blocks\.0\.resnets", "up.1.block"),  # counted from the other end
    (r"up_blocks\.1\.resnets", "up.0.block"),
    (r"up_blocks\.0\.upsamplers\.0", "up.1.upsample"),
    (r"mid_block\.resnets\.0", "mid.block_1"),
    (r"mid_block\.resnets\.1", "mid.block_2"),
    (r"mid_block\.attentions\.0", "mid.attn_1"),
    (r"group_norm", "norm"),
    (r"to_([qkv])", r"\1"),
    (r"to_out\.0", "proj_out"),
    (r"conv_norm_out", "norm_out"),
    (r"conv_shortcut", "nin_shortcut"),
]
PREFIXES = {
    "unet": "model.diffusion_model.",
    "vae": "first_stage_model.",
    "text_encoder": "cond_stage_model.transformer.text_model.",
}


def save_single_file(pipeline: Any, path: Path) -> Path:
    """Weights only: the configs and the tokenizer have to stand beside it."""
    rules = {"unet": UNET, "vae": VAE, "text_encoder": [(r"^text_model\.", "")]}
    tensors = {}
    for part, prefix in PREFIXES.items():
        for name, tensor in getattr(pipeline, part).state_dict().items():
            for pattern, there in rules[part]:
                name = re.sub(pattern, there, name)
            if re.search(r"attn_1\.(q|k|v|proj_out)\.weight", name):
                tensor = tensor[..., None, None]  # 1x1 convolutions there
            tensors[prefix + name] = tensor.contiguous()
    safetensors.torch.save_file(tensors, path)
    return path
