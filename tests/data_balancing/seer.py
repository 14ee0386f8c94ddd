"""A tiny image-text-to-text model that tells white from black, taught in seconds."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

SPECIAL = ["<pad>", "<eos>", "<image>"]
SIDE, WIDTH = 16, 32
TEMPLATE = (
    "{% for m in messages %}{% for p in m.content %}{% if p.type == 'image' %}<image>"
    "{% endif %}{% endfor %}{% endfor %}:"
)
"""It hears the pictures alone, so that its prompt stays short."""
ANSWERS = {255: '{"categories":["hand"]}', 0: '{"categories":[]}'}


def processor() -> LlavaProcessor:
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: i for i, token in enumerate([*SPECIAL, *letters])}
    tokens = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokens.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokens.decoder = decoders.ByteLevel()
    tokens.add_special_tokens(SPECIAL)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=tokens,
        pad_token="<pad>",
        eos_token="<eos>",
        extra_special_tokens={"image_token": "<image>"},
    )
    pictures = CLIPImageProcessor(
        size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE}
    )
    return LlavaProcessor(
        pictures,
        tokenizer,
        patch_size=8,
        vision_feature_select_strategy="default",
        chat_template=TEMPLATE,
        num_additional_image_tokens=1,
    )


def network(tokens: int) -> LlavaForConditionalGeneration:
    size = {"hidden_size": WIDTH, "intermediate_size": WIDTH, "num_attention_heads": 2}
    seeing = CLIPVisionConfig(
        **size, num_hidden_layers=2, image_size=SIDE, patch_size=8, projection_dim=WIDTH
    )
    saying = LlamaConfig(
        **size,
        vocab_size=tokens,
        num_hidden_layers=2,
        num_key_value_heads=2,
        max_position_embeddings=512,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=1,
    )
    return LlavaForConditionalGeneration(
        LlavaConfig(vision_config=seeing, text_config=saying, image_token_index=2)
    )


def save_seer(folder: Path, steps: int = 150) -> Path:
    """Teacher forcing on a white and a black picture; without steps it answers nonsense."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        reader = processor()
        model = network(len(reader.tokenizer))
        optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
        pictures = [Image.fromarray(np.full((SIDE, SIDE, 3), v, np.uint8)) for v in ANSWERS]
        texts = [f"<image>:{answer}<eos>" for answer in ANSWERS.values()]
        batch = reader(images=pictures, text=texts, padding=True, return_tensors="pt")
        labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
        labels = labels.masked_fill(labels == 2, -100)
        for _ in range(steps):
            model(**batch, labels=labels).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    model.save_pretrained(folder)
    reader.save_pretrained(folder)
    return folder
