"""Random CLIP and T5 encoders that read letters, and their tokenizers."""

from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
    T5TokenizerFast,
)

LETTERS = "abcdefghijklmnopqrstuvwxyz ,.-'"
CLIP_TOKENS, T5_TOKENS = 24, 16
WIDTH = 16


def clip_tokenizer() -> CLIPTokenizer:
    symbols = [*LETTERS.replace(" ", ""), *(f"{c}</w>" for c in LETTERS.replace(" ", ""))]
    names = ["<|startoftext|>", "<|endoftext|>", *symbols]
    vocab = {name: index for index, name in enumerate(names)}
    return CLIPTokenizer(vocab=vocab, merges=[], model_max_length=CLIP_TOKENS)


def clip_config(vocabulary: int, layers: int, width: int = WIDTH) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=width,
        projection_dim=WIDTH,
        num_hidden_layers=layers,
        num_attention_heads=2,
        max_position_embeddings=CLIP_TOKENS,
        bos_token_id=0,
        eos_token_id=1,
    )


def clip(vocabulary: int, layers: int = 1, width: int = WIDTH) -> CLIPTextModel:
    return CLIPTextModel(clip_config(vocabulary, layers, width))


def clip_with_projection(vocabulary: int, layers: int = 2) -> CLIPTextModelWithProjection:
    return CLIPTextModelWithProjection(clip_config(vocabulary, layers))


def t5_tokenizer() -> T5TokenizerFast:
    names = ["<pad>", "</s>", "<unk>", "\u2581", *LETTERS.replace(" ", "")]
    vocab = [(name, 0.0 if index < 3 else -2.0) for index, name in enumerate(names)]
    return T5TokenizerFast(vocab=vocab, extra_ids=0, model_max_length=T5_TOKENS)


def t5(vocabulary: int, width: int = WIDTH) -> T5EncoderModel:
    config = T5Config(
        vocab_size=vocabulary, d_model=width, d_kv=8, d_ff=16, num_layers=1, num_heads=2
    )
    return T5EncoderModel(config)
