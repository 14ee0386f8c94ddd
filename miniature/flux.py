"""The miniature's FLUX: the law's prompts in; two readers, a transformer and pipelines out."""

from collections.abc import Collection, Iterable
from functools import partial
from pathlib import Path
from typing import Any, final

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from jaxtyping import Float
from torch import Tensor, nn

from core.contracts import Latents
from miniature import flow, text
from miniature.bases import save_newest
from miniature.law import all_prompts
from miniature.reading import in_chunks, teach_to_read

CLIP, T5 = "text_encoder", "text_encoder_2"


@final
class Flux:
    """One of the miniature's families; see `miniature.families`."""

    pipeline, network_folder = "FluxPipeline", "transformer"
    guided = pixels = False
    shifted = True

    def make_readers(self) -> dict[str, nn.Module]:
        return {CLIP: text.make_clip(), T5: text.make_t5(text.make_t5_tokenizer())}

    def make_tokenizers(self) -> dict[str, Any]:
        return {CLIP: text.make_clip_tokenizer(), T5: text.make_t5_tokenizer()}

    def teach(
        self,
        readers: dict[str, Any],
        steps: Iterable[int],
        seed: int,
        held: Collection[str] = (),
    ) -> float:
        """Both must be readable: CLIP's summary, and the mean of T5's tokens."""

        def read(prompts: list[str]) -> list[Tensor]:
            said = self.read(readers, prompts)
            return [said["pooled"], said["text"].mean(dim=1)]

        return teach_to_read([readers[CLIP], readers[T5]], read, steps, seed, held)

    def conditioning(self, readers: dict[str, Any]) -> dict[str, Tensor]:
        return in_chunks(partial(self.read, readers), list(all_prompts()))

    def read(self, readers: dict[str, Any], prompts: list[str]) -> dict[str, Tensor]:
        """`pooled` (b, e) from CLIP and `text` (b, n, d) from T5, as `FluxPipeline` takes them."""
        clip, t5 = readers[CLIP], readers[T5]
        pooled = clip(text.read(text.make_clip_tokenizer(), prompts).to(clip.device)).pooler_output
        words = t5(text.read(text.make_t5_tokenizer(), prompts).to(t5.device))[0]
        return {"pooled": pooled, "text": words}

    def make_network(self) -> nn.Module:
        return flow.make_transformer()

    def loss(
        self, network: nn.Module, latents: Latents, said: dict[str, Tensor], g: torch.Generator
    ) -> Float[Tensor, ""]:
        return flow.flow_loss(network, latents, said["text"], said["pooled"], g)

    def save(self, folder: Path, network: Any, vae: AutoencoderKL, readers: dict[str, Any]) -> None:
        save_newest(folder, network, vae, readers[CLIP], readers[T5])
