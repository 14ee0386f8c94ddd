"""A folder of a transformers image-text-to-text model in, its answers to messages out; offline."""

import base64
import io
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from core.digests import model_name
from core.errors import UserError
from data_balancing.asking import Message
from detector.measure import device

MAX_NEW_TOKENS = 256
"""Every leaf of a large taxonomy fits."""


class LocalModel:
    """Answers greedily, without a schema to hold it: what is wrong goes back as from a server."""

    def __init__(self, folder: Path, on: str = "auto"):
        if not (folder / "config.json").is_file():
            raise UserError(f"{folder} has no config.json; name one that save_pretrained wrote.")
        self.name = model_name(folder)
        self._lock = threading.Lock()
        self._processor, self._model = _load(folder)
        self._model.to(device(on))

    @torch.no_grad()
    def say(self, messages: Sequence[Message], schema: Mapping[str, Any]) -> str:
        """One answer's text. `schema` is for models that can be held to it."""
        with self._lock:
            inputs = self._processor.apply_chat_template(
                [_as_transformers(message) for message in messages],
                add_generation_prompt=True,
                tokenize=True,
                return_dict=True,
                return_tensors="pt",
            ).to(self._model.device)
            out = self._model.generate(**inputs, max_new_tokens=MAX_NEW_TOKENS, do_sample=False)
        answer = out[0, inputs["input_ids"].shape[1] :]
        return self._processor.decode(answer, skip_special_tokens=True)


def _load(folder: Path) -> tuple[Any, Any]:
    """Processor and model, by transformers' own classes, from this folder alone."""
    from transformers import AutoModelForImageTextToText, AutoProcessor

    try:
        processor = AutoProcessor.from_pretrained(folder, local_files_only=True)
        model = AutoModelForImageTextToText.from_pretrained(
            folder, local_files_only=True, use_safetensors=True, dtype="auto"
        )
    except (OSError, ValueError, KeyError) as error:
        line = " ".join(str(error).split())[:200]
        raise UserError(
            f"{folder} is no image-text-to-text model of transformers ({line}); name another."
        ) from error
    return processor, model.eval()


def _as_transformers(message: Message) -> dict[str, Any]:
    """The same message with parts as transformers' chat templates take them."""
    content = message["content"]
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
    return {"role": message["role"], "content": [_part(part) for part in parts]}


def _part(part: Mapping[str, Any]) -> dict[str, Any]:
    if part["type"] != "image_url":
        return dict(part)
    content = base64.b64decode(part["image_url"]["url"].split(",", 1)[1])
    return {"type": "image", "image": Image.open(io.BytesIO(content), formats=["JPEG"])}
