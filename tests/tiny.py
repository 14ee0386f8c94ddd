"""A random FLUX of a few thousand weights, built in code: the tests' base model, no downloads."""

from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
)
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
    T5TokenizerFast,
)

from base_models.flux import Flux

LETTERS = "abcdefghijklmnopqrstuvwxyz ,.-'"
CLIP_TOKENS, T5_TOKENS = 24, 16
SIZE = 32
"""Pixels on a side: a 2x autoencoder and 2x2 cells a token make 64 tokens."""


def tiny_clip_tokenizer() -> CLIPTokenizer:
    symbols = [*LETTERS.replace(" ", ""), *(f"{c}</w>" for c in LETTERS.replace(" ", ""))]
    names = ["<|startoftext|>", "<|endoftext|>", *symbols]
    vocab = {name: index for index, name in enumerate(names)}
    return CLIPTokenizer(vocab=vocab, merges=[], model_max_length=CLIP_TOKENS)


def tiny_t5_tokenizer() -> T5TokenizerFast:
    names = ["<pad>", "</s>", "<unk>", "\u2581", *LETTERS.replace(" ", "")]
    vocab = [(name, 0.0 if index < 3 else -2.0) for index, name in enumerate(names)]
    return T5TokenizerFast(vocab=vocab, extra_ids=0, model_max_length=T5_TOKENS)


def tiny_pipeline(
    seed: int = 0, *, guidance_embeds: bool = False, dynamic_shift: bool = False
) -> FluxPipeline:
    """Random weights from `seed`; shift and scale of the autoencoder are not trivial."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        clip, t5 = tiny_clip_tokenizer(), tiny_t5_tokenizer()
        return FluxPipeline(
            transformer=_transformer(guidance_embeds),
            vae=_vae(),
            text_encoder=_clip(len(clip)),
            text_encoder_2=_t5(len(t5)),
            tokenizer=clip,
            tokenizer_2=t5,
            scheduler=FlowMatchEulerDiscreteScheduler(
                shift=3.0, use_dynamic_shifting=dynamic_shift
            ),
        )


def tiny_flux(seed: int = 0, **options: bool) -> Flux:
    return Flux.from_pipeline(tiny_pipeline(seed, **options))


def save_tiny(folder: Path, seed: int = 0) -> Path:
    tiny_pipeline(seed).save_pretrained(folder)
    return folder


def _transformer(guidance_embeds: bool) -> FluxTransformer2DModel:
    network = FluxTransformer2DModel(
        patch_size=1,
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=16,
        pooled_projection_dim=16,
        guidance_embeds=guidance_embeds,
        axes_dims_rope=(2, 2, 4),
    )
    # Fresh networks of this size hardly move the noise: louder weights make every input count.
    for weight in network.parameters():
        weight.data.mul_(3.0)
    return network


def _vae() -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=SIZE,
        use_quant_conv=False,
        use_post_quant_conv=False,
        scaling_factor=1.3,
        shift_factor=0.15,
    )


def _clip(vocabulary: int) -> CLIPTextModel:
    config = CLIPTextConfig(
        vocab_size=vocabulary,
        hidden_size=16,
        intermediate_size=16,
        projection_dim=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=CLIP_TOKENS,
        bos_token_id=0,
        eos_token_id=1,
    )
    return CLIPTextModel(config)


def _t5(vocabulary: int) -> T5EncoderModel:
    config = T5Config(vocab_size=vocabulary, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    return T5EncoderModel(config)
