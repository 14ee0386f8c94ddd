"""The miniature's Kolors: the law's prompts in; a reader, a UNet and a pipeline folder out."""

import functools
import string
import tempfile
from collections.abc import Collection, Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, final

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.pipelines.kolors.pipeline_kolors import KolorsPipeline
from diffusers.pipelines.kolors.text_encoder import ChatGLMConfig, ChatGLMModel
from diffusers.pipelines.kolors.tokenizer import ChatGLMTokenizer
from sentencepiece import sentencepiece_model_pb2
from torch import Tensor, nn

from base_models.kolors import TEXT_TOKENS, ChatGlm
from miniature import epsilon
from miniature.law import all_prompts
from miniature.reading import in_chunks, teach_to_read
from miniature.text import grammar_words

WIDTH = epsilon.POOLED
SPOKEN = 20
"""Tokens at the right that hold any prompt; all others are padding."""


@final
class Kolors:
    """One of the miniature's families; see `miniature.families`."""

    pipeline, network_folder = "KolorsPipeline", "unet"
    guided, pixels, shifted = True, False, False

    def __init__(self) -> None:
        self.scheduler = epsilon.make_scheduler(beta_end=0.014, steps=1100)

    def make_readers(self) -> dict[str, nn.Module]:
        return {"text_encoder": make_glm(make_tokenizer().vocab_size)}

    def make_tokenizers(self) -> dict[str, Any]:
        return {"text_encoder": make_tokenizer()}

    def teach(
        self,
        readers: dict[str, nn.Module],
        steps: Iterable[int],
        seed: int,
        held: Collection[str] = (),
    ) -> float:
        """Readable must be the spoken tokens, the padding (it sees them all) and the summary."""
        glm = ChatGlm(parts(readers))

        def read(prompts: list[str]) -> list[Tensor]:
            said = glm.read(prompts)
            padding, spoken = said["text"].split([TEXT_TOKENS - SPOKEN, SPOKEN], dim=1)
            return [spoken.mean(dim=1), padding.mean(dim=1), said["pooled"]]

        return teach_to_read(list(readers.values()), read, steps, seed, held)

    def conditioning(self, readers: dict[str, nn.Module]) -> dict[str, Tensor]:
        """What the reader says of every prompt, and last of the empty one."""
        return in_chunks(ChatGlm(parts(readers)).read, [*all_prompts(), ""])

    def make_network(self) -> UNet2DConditionModel:
        return epsilon.make_unet(
            cross_attention_dim=WIDTH, encoder_hid_dim=WIDTH, encoder_hid_dim_type="text_proj"
        )

    def loss(
        self, network: nn.Module, latents: Tensor, said: dict[str, Tensor], g: torch.Generator
    ) -> Tensor:
        return epsilon.epsilon_loss(network, self.scheduler, latents, said, g)

    def save(
        self, folder: Path, network: nn.Module, vae: AutoencoderKL, readers: dict[str, nn.Module]
    ) -> None:
        make: Any = KolorsPipeline
        pipeline = make(
            unet=network,
            vae=epsilon.unshifted(vae),
            scheduler=self.scheduler,
            force_zeros_for_empty_prompt=False,
            tokenizer=make_tokenizer(),
            **readers,
        )
        epsilon.save_pipeline(folder, pipeline)


def make_glm(vocabulary: int) -> ChatGLMModel:
    """Three layers: what the base reads is the last states but one."""
    config = ChatGLMConfig(
        num_layers=3,
        padded_vocab_size=vocabulary,
        hidden_size=WIDTH,
        ffn_hidden_size=2 * WIDTH,
        kv_channels=16,
        num_attention_heads=4,
        seq_length=TEXT_TOKENS,
        add_qkv_bias=True,
        multi_query_attention=True,
        multi_query_group_num=2,
        original_rope=True,
    )
    model = ChatGLMModel(config)
    for weight in model.parameters():  # ChatGLM leaves its memory uninitialised
        if weight.ndim == 2:
            nn.init.normal_(weight, std=weight.shape[1] ** -0.5)
    for name, weight in model.named_parameters():
        if weight.ndim == 1:
            nn.init.constant_(weight, 0.0 if name.endswith("bias") else 1.0)
    return model


def make_tokenizer() -> ChatGLMTokenizer:
    return ChatGLMTokenizer(str(Path(pieces_folder().name) / "tokenizer.model"))


@functools.cache
def pieces_folder() -> tempfile.TemporaryDirectory:
    """Holds `tokenizer.model` until the process ends: the tokenizer copies it when it is saved."""
    folder = tempfile.TemporaryDirectory()
    (Path(folder.name) / "tokenizer.model").write_bytes(spell_pieces())
    return folder


def spell_pieces() -> bytes:
    """A sentencepiece model: the grammar's words whole, the words on signs letter by letter."""
    pieces = {"▁" + word: -2.0 for word in sorted(grammar_words())} | {"▁": -6.0, ",": -4.0}
    for letter in string.ascii_lowercase + string.digits:
        pieces |= {letter: -5.0, "▁" + letter: pieces.get("▁" + letter, -5.0)}
    made: Any = sentencepiece_model_pb2
    model = made.ModelProto(trainer_spec={"model_type": 1}, normalizer_spec={"name": "identity"})
    model.normalizer_spec.add_dummy_prefix = True
    for token, kind in (("<unk>", 2), ("<s>", 3), ("</s>", 3)):
        model.pieces.add(piece=token, score=0.0, type=kind)
    for piece, score in pieces.items():
        model.pieces.add(piece=piece, score=score)
    return model.SerializeToString(deterministic=True)


def parts(readers: dict[str, nn.Module]) -> SimpleNamespace:
    """As much of a pipeline as reading takes."""
    config = SimpleNamespace(force_zeros_for_empty_prompt=False)
    return SimpleNamespace(config=config, tokenizer=make_tokenizer(), **readers)
