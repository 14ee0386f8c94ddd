"""A random Stable Diffusion 3.5 medium: two blocks, the first attending twice."""

import torch
from diffusers import (
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
)

from tests.tiny import text
from tests.tiny.flux import SIZE, tiny_vae

JOINT = 3 * text.WIDTH
"""Width of T5's words: the two CLIPs' side by side are narrower, as in the real one."""


def tiny_sd3(*, dynamic_shift: bool = False, t5: bool = True) -> StableDiffusion3Pipeline:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        clip, words = text.clip_tokenizer(), text.t5_tokenizer()
        return StableDiffusion3Pipeline(
            transformer=_transformer(),
            vae=tiny_vae(),
            text_encoder=text.clip_with_projection(len(clip)),
            text_encoder_2=text.clip_with_projection(len(clip)),
            text_encoder_3=text.t5(len(words), JOINT) if t5 else None,
            tokenizer=clip,
            tokenizer_2=clip,
            tokenizer_3=words if t5 else None,
            scheduler=FlowMatchEulerDiscreteScheduler(
                shift=3.0, use_dynamic_shifting=dynamic_shift
            ),
        )


def _transformer() -> SD3Transformer2DModel:
    network = SD3Transformer2DModel(
        sample_size=SIZE // 2,
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=JOINT,
        caption_projection_dim=16,
        pooled_projection_dim=2 * text.WIDTH,
        pos_embed_max_size=24,
        dual_attention_layers=(0,),
        qk_norm="rms_norm",
    )
    # Fresh networks of this size hardly move the noise: louder weights make every input count.
    for weight in network.parameters():
        weight.data.mul_(3.0)
    return network
