"""Images and their prompts in, how well each pair fits out: a CLIP's image-level reward.

CLIP itself, PickScore (Kirstain et al. 2023, arXiv 2305.01569) and HPS v2 (Wu et al. 2023, arXiv
2306.09341) are CLIPs of different training; all are read from local folders in transformers'
format. The comparison baseline of a pixel-level reward, and a guard of the prompt beside one.
Legend: b batch, h w pixels, e embedding.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoTokenizer, CLIPConfig, CLIPModel

from base_models.load import check_safetensors
from core.contracts import Images
from core.errors import UserError
from core.storage import read_json
from detector.segformer import freeze

CONFIG, PREPROCESSOR = "config.json", "preprocessor_config.json"
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
"""CLIP's own, for a folder whose preprocessor names none."""


class ImageReward(nn.Module):
    """The cosine of image and prompt, differentiable in the image."""

    model: Any
    mean: Tensor
    std: Tensor

    def __init__(
        self, model: CLIPModel, tokenizer: Any, mean: Sequence[float], std: Sequence[float]
    ):
        super().__init__()
        self.model, self.tokenizer = model, tokenizer
        said: Any = model.config
        self.side = int(said.vision_config.image_size)
        self.length = int(said.text_config.max_position_embeddings)
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1), persistent=False)
        self._read: dict[str, Float[Tensor, " e"]] = {}

    def forward(self, images: Images, prompts: Sequence[str]) -> Float[Tensor, " b"]:
        said = torch.stack([self.text(prompt) for prompt in prompts])
        seen = self.model.get_image_features(pixel_values=self.pixels(images))
        return (F.normalize(seen.pooler_output.float(), dim=-1) * said).sum(-1)

    @torch.no_grad()
    def text(self, prompt: str) -> Float[Tensor, " e"]:
        """Its direction; read once, and in the model's own dtype, whoever asks first."""
        if prompt not in self._read:
            tokens = self.tokenizer(
                [prompt], padding="max_length", max_length=self.length, truncation=True,
                return_tensors="pt",
            ).to(self.mean.device)  # fmt: skip
            with torch.autocast(self.mean.device.type, enabled=False):
                found = self.model.get_text_features(**tokens).pooler_output
            self._read[prompt] = F.normalize(found[0].float(), dim=-1)
        return self._read[prompt]

    def pixels(self, images: Images) -> Float[Tensor, "b 3 s s"]:
        """As CLIP's own processor: the shorter side bicubically to `side`, and the middle of it."""
        h, w = images.shape[2:]
        scale = self.side / min(h, w)
        size = [max(self.side, int(edge * scale)) for edge in (h, w)]
        small = F.interpolate(
            images, size=size, mode="bicubic", antialias=True, align_corners=False
        ).clamp(0, 1)
        top, left = ((edge - self.side) // 2 for edge in size)
        middle = small[:, :, top : top + self.side, left : left + self.side]
        return ((middle - self.mean) / self.std).to(self.model.dtype)


def check_reward(folder: Path) -> None:
    """Raise `UserError` unless the folder holds a whole CLIP with tokenizer; reads no weight."""
    if not (folder / CONFIG).is_file():
        raise UserError(
            f"{folder} has no {CONFIG}: name a folder of an image reward in transformers' format."
        )
    for path in sorted(folder.glob("*.json")):
        read_json(path)
    family = read_json(folder / CONFIG).get("model_type")
    if family != "clip":
        raise UserError(
            f"{folder} holds a {family!r} model and no 'clip': give CLIP, PickScore or HPS v2 in "
            "transformers' format."
        )
    if not any((folder / name).is_file() for name in ("tokenizer.json", "vocab.json")):
        raise UserError(f"{folder} has no tokenizer: copy tokenizer.json into it.")
    held = {}
    for path in sorted(folder.glob("*.safetensors")):
        held |= check_safetensors(path)
    if not held:
        raise UserError(f"{folder} has no .safetensors weights: save them with safe_serialization.")
    try:
        outline: Any = _on_meta(folder)
        _frozen(outline, folder)
    except Exception as error:  # whatever transformers and tokenizers make of what they read
        raise UserError(
            f"{folder} cannot be read as a CLIP with its tokenizer "
            f"({' '.join(str(error).split())[:200]}): copy or download it again."
        ) from error
    for name, tensor in outline.state_dict().items():
        if held.get(name) != tuple(tensor.shape):  # transformers would draw it at random
            raise UserError(
                f"the weights in {folder} do not fit its {CONFIG} ({name!r}): copy or download "
                "both again."
            )


def load_reward(folder: Path, dtype: torch.dtype = torch.float32) -> ImageReward:
    """Frozen; raises `UserError` as `check_reward`."""
    check_reward(folder)
    model = CLIPModel.from_pretrained(folder, dtype=dtype, local_files_only=True)
    return _frozen(model, folder)


def outline_of_reward(folder: Path, dtype: torch.dtype) -> ImageReward:
    """The same by its config alone, on the meta device; for counting."""
    check_reward(folder)
    model: Any = _on_meta(folder)
    return _frozen(model.to(dtype), folder)


def _on_meta(folder: Path) -> CLIPModel:
    with torch.device("meta"):
        return CLIPModel(CLIPConfig.from_pretrained(folder))


def _frozen(model: CLIPModel, folder: Path) -> ImageReward:
    said = read_json(folder / PREPROCESSOR) if (folder / PREPROCESSOR).is_file() else {}
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    mean, std = said.get("image_mean", MEAN), said.get("image_std", STD)
    if len(mean) != 3 or len(std) != 3:
        raise ValueError(f"{PREPROCESSOR} gives no three values for image_mean and image_std")
    return freeze(ImageReward(model, tokenizer, mean, std))
