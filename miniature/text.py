"""The miniature's readers: prompts in, embeddings out, as tiny CLIP and T5 encoders.

Both learn to read by themselves before any base model exists (`miniature.reading`): from CLIP's
pooled vector, and from the mean of T5's tokens, every stated factor (and every letter of a sign)
must be told. Then they are frozen and shared by all grades, as large models' text encoders are.
"""

import functools
import string
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

from miniature.law import CATEGORIES, all_prompts

T5_LENGTH = 19
"""Tokens of the longest prompt."""
CLIP_LENGTH = 77
"""As OpenAI's; the longest prompt has 72 tokens."""


def make_clip_tokenizer() -> CLIPTokenizer:
    """Letters and punctuation, each also with the end-of-word mark; no merges."""
    signs = string.ascii_lowercase + string.digits + ",.-'"
    tokens = [*signs, *(s + "</w>" for s in signs), "<|startoftext|>", "<|endoftext|>"]
    vocab = {token: i for i, token in enumerate(tokens)}
    return CLIPTokenizer(vocab=vocab, merges=[], model_max_length=CLIP_LENGTH)


def make_t5_tokenizer() -> T5Tokenizer:
    """A unigram model of the grammar's words, and of letters for everything else."""
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -6.0), (",", -4.0)]
    pieces += [("▁" + word, -2.0) for word in sorted(grammar_words()) if len(word) > 1]
    for letter in string.ascii_lowercase + string.digits:
        pieces += [(letter, -5.0), ("▁" + letter, -5.0)]
    return T5Tokenizer(vocab=pieces, extra_ids=0, model_max_length=T5_LENGTH)


def adopt(reader: Any, folder: Path, tokenizer: Any) -> set[str]:
    """Give a reader, that of `tokenizer`, what an earlier law's reader knows.

    Pieces of both keep their vectors, a new one begins as their mean. Texts may be longer or
    shorter: known places keep theirs. Returns the new pieces.
    """
    earlier = type(reader).from_pretrained(folder, local_files_only=True)
    tokens = folder.parent / folder.name.replace("text_encoder", "tokenizer")
    rows = type(tokenizer).from_pretrained(tokens, local_files_only=True).get_vocab()
    known, own = earlier.get_input_embeddings().weight.detach(), reader.state_dict()
    table = known.mean(dim=0).expand_as(reader.get_input_embeddings().weight).clone()
    for piece, row in tokenizer.get_vocab().items():
        if piece in rows:
            table[row] = known[rows[piece]]
    for name, weight in earlier.state_dict().items():
        if weight.shape == own[name].shape:
            own[name] = weight
        elif "position_embedding" in name:
            own[name] = torch.cat([weight, own[name][len(weight) :]])[: len(own[name])]
    reader.load_state_dict(own)
    with torch.no_grad():
        reader.get_input_embeddings().weight.copy_(table)
    return set(tokenizer.get_vocab()) - set(rows)


@functools.cache
def grammar_words() -> frozenset[str]:
    """The words of all prompts but those that signs spell."""
    spelled = {word.lower() for word in CATEGORIES["sign"].kinds["word"]}
    return frozenset(w for p in all_prompts() for w in p.replace(",", "").split()) - spelled


def make_clip() -> CLIPTextModel:
    return CLIPTextModel(clip_config(layers=2))


def clip_config(layers: int) -> CLIPTextConfig:
    ids: Any = make_clip_tokenizer()
    return CLIPTextConfig(
        vocab_size=len(ids),
        hidden_size=64,
        intermediate_size=128,
        projection_dim=64,
        num_hidden_layers=layers,
        num_attention_heads=4,
        max_position_embeddings=CLIP_LENGTH,
        bos_token_id=ids.bos_token_id,
        eos_token_id=ids.eos_token_id,
        pad_token_id=ids.pad_token_id,
    )


def make_t5(tokenizer: T5Tokenizer) -> T5EncoderModel:
    config = T5Config(
        vocab_size=len(tokenizer),
        d_model=64,
        d_kv=16,
        d_ff=128,
        num_layers=2,
        num_heads=4,
        dropout_rate=0.0,
        relative_attention_num_buckets=16,
        relative_attention_max_distance=16,
    )
    return T5EncoderModel(config)


def questions(stated: dict[str, str], category: str) -> dict[str, str]:
    """What a reader must be able to tell of one prompt."""
    asked = {"category": category} | {k: v for k, v in stated.items() if k != "word"}
    return asked | {f"letter{i}": c for i, c in enumerate(stated.get("word", ""))}


def answers() -> tuple[list[str], dict[str, Tensor], dict[str, int]]:
    """All prompts; for each question the label of every prompt (-100 where it is not asked)."""
    table = {p: questions(stated, c) for p, (c, stated) in all_prompts().items()}
    names = sorted({q for asked in table.values() for q in asked})
    labels, sizes = {}, {}
    for name in names:
        values = sorted({asked[name] for asked in table.values() if name in asked})
        rows = [values.index(a[name]) if name in a else -100 for a in table.values()]
        labels[name], sizes[name] = torch.tensor(rows), len(values)
    return list(table), labels, sizes


def read(tokenizer: Any, prompts: list[str]) -> Int[Tensor, "b n"]:
    """Padded token ids, without a mask: the FLUX pipeline passes none either."""
    length = tokenizer.model_max_length
    return tokenizer(
        prompts, padding="max_length", max_length=length, return_tensors="pt"
    ).input_ids
