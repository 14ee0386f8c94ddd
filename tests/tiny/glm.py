"""A random ChatGLM that reads letters, and its tokenizer (apart: its import is slow)."""

import functools
import io
import tempfile
from pathlib import Path

import sentencepiece
import torch
from diffusers.pipelines.kolors.text_encoder import ChatGLMConfig, ChatGLMModel
from diffusers.pipelines.kolors.tokenizer import ChatGLMTokenizer

from tests.tiny.text import LETTERS, WIDTH


@functools.cache
def sentencepiece_folder() -> tempfile.TemporaryDirectory:
    """Holds `tokenizer.model`, a piece a letter, until the process ends."""
    folder, model = tempfile.TemporaryDirectory(), io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([LETTERS] * 4),
        model_writer=model,
        model_type="char",
        vocab_size=64,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    (Path(folder.name) / "tokenizer.model").write_bytes(model.getvalue())
    return folder


def glm_tokenizer() -> ChatGLMTokenizer:
    return ChatGLMTokenizer(str(Path(sentencepiece_folder().name) / "tokenizer.model"))


def glm(vocabulary: int) -> ChatGLMModel:
    config = ChatGLMConfig(
        num_layers=2,
        padded_vocab_size=vocabulary,
        hidden_size=WIDTH,
        ffn_hidden_size=WIDTH,
        kv_channels=8,
        num_attention_heads=2,
        seq_length=256,
        add_qkv_bias=True,
        multi_query_attention=True,
        multi_query_group_num=1,
        original_rope=True,
    )
    model = ChatGLMModel(config)
    for name, weight in model.named_parameters():  # ChatGLM leaves its memory uninitialised
        weight.data = torch.ones_like(weight) if "norm" in name else torch.randn(weight.shape) * 0.3
    return model
