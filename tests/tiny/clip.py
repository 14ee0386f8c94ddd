"""A whole CLIP of a few thousand weights in a folder, as transformers writes one."""

from pathlib import Path

import torch
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel

from tests.tiny.text import CLIP_TOKENS, WIDTH, clip_config, clip_tokenizer

SIDE = 16


def save_clip(folder: Path, seed: int = 0) -> Path:
    """Weights, tokenizer and preprocessor."""
    tokenizer = clip_tokenizer()
    vision = {
        "hidden_size": WIDTH,
        "intermediate_size": WIDTH,
        "projection_dim": WIDTH,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": SIDE,
        "patch_size": 4,
    }
    text = clip_config(len(tokenizer), 1).to_dict()
    config = CLIPConfig(text_config=text, vision_config=vision, projection_dim=WIDTH)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = CLIPModel(config)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    CLIPImageProcessor(
        size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE}
    ).save_pretrained(folder)
    assert CLIP_TOKENS == model.config.text_config.max_position_embeddings
    return folder
