"""The arms of a comparison: names, prompts and seeds in, the same images of every arm out.

An arm is the base model or the base with one adapter. Image i of every arm has the same prompt
and the same noise; images that are already on disk are not drawn again.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from base_models.guidance import guidance_options
from base_models.load import load_base, repository
from base_models.names import Quantisation
from base_models.outline import open_outline
from base_models.quantise import quantise
from base_models.sample import sample
from core.contracts import Conditioning, DiffusionModel, Images
from core.errors import UserError
from core.images import write_image
from core.seeds import mix
from treat.adapter import Adapter, attach, check_modules, fuse, pin, read_adapter

BASE = "base"
NOTE = "adapter.json"
"""In the folder of an arm's images: the digest of what it was drawn with."""
PURPOSE = 0x65766C
"""Keeps the seeds of an evaluation away from those of training."""
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


class Draw(NamedTuple):
    """One image of every arm: its prompt and the seed of its noise."""

    prompt: str
    seed: int


class Sampling(NamedTuple):
    """How every arm is sampled."""

    base: str
    steps: int
    height: int
    width: int
    batch: int
    device: str
    dtype: str
    beside: Path | None = None
    """What is part of the base in every arm."""
    quantise: Quantisation = "no"
    guidance: float | None = None
    """None: the base's own."""


def named(words: Sequence[str]) -> dict[str, str]:
    """NAME=PATH words as a dict; `UserError` for a word without a name, or a name twice."""
    pairs: dict[str, str] = {}
    for word in words:
        name, equals, path = word.partition("=")
        if not (equals and path and name.replace("-", "").replace("_", "").isalnum()):
            raise UserError(f"'{word}' is not NAME=PATH: write it like treated=runs/treat.")
        if name in pairs or name == BASE:
            raise UserError(f"the name '{name}' stands for two arms: give each its own.")
        pairs[name] = path
    return pairs


def open_arms(
    paths: Mapping[str, str], step: str, beside: Path | None = None
) -> dict[str, Adapter | None]:
    """Every arm by name, the base (no adapter) first; all files are read before any image.

    `UserError` where one was trained beside another adapter than `beside`.
    """
    arms: dict[str, Adapter | None] = {BASE: None}
    for name, path in paths.items():
        adapter = read_adapter(Path(path), step)
        own = adapter.run.get("beside")
        if own and own != str(beside):
            raise UserError(f"'{name}' was trained beside {own}: give --beside {own}.")
        arms[name] = adapter
    return arms


def check_origins(arms: Mapping[str, Adapter | None], base: str, guidance: float | None) -> None:
    """Raise `UserError` where an arm was trained on another revision of the base, or with a
    guidance of its own while none is said here."""
    for name, adapter in arms.items():
        run = {} if adapter is None else adapter.run
        own, scale = str(run.get("base")), run.get("guidance")
        twin = repository(own)[0] == repository(base)[0] and not Path(base).expanduser().exists()
        if twin and repository(own)[1] and own != base:
            raise UserError(f"'{name}' was trained on {own}: give --base {own}.")
        if scale is not None and guidance is None:
            raise UserError(
                f"'{name}' was trained with guidance {scale}: give --guidance {scale}, or another "
                "that all arms shall be drawn with."
            )


def trained(arms: Mapping[str, Adapter | None], setting: str) -> int | None:
    """The number that the arms' runs say of a setting; None where none says any.

    `UserError` where they disagree, or one says no number.
    """
    known: dict[int, str] = {}
    for name, adapter in arms.items():
        said = None if adapter is None else adapter.run.get(setting)
        if said is not None and not isinstance(said, int):
            raise UserError(f"the settings of '{name}' are damaged ({setting}): train it again.")
        if said is not None:
            known.setdefault(said, name)
    if len(known) > 1:
        told = " and ".join(f"'{name}' with {setting} {said}" for said, name in known.items())
        raise UserError(
            f"{told} were trained otherwise: give --{setting.replace('_', '-')}, with which all "
            "arms shall be drawn."
        )
    return next(iter(known), None)


def check_arms(arms: Mapping[str, Adapter | None], base: str, beside: Adapter | None) -> None:
    """Raise `UserError` unless every adapter fits the base, whose weights are not read."""
    named = {name: adapter for name, adapter in arms.items() if adapter is not None}
    if not named and beside is None:
        return
    network = open_outline(base, torch.float32)[0].network
    if beside is not None:
        fuse(network, beside)
    for name, adapter in named.items():
        try:
            check_modules(network, adapter)
        except UserError as error:
            raise UserError(f"'{name}' does not fit {base}: {error}") from error


def plan(prompts: Sequence[str], n: int | None, seed: int) -> list[Draw]:
    """What is drawn: n images (one a prompt by default); prompts repeat with new seeds."""
    count = len(prompts) if n is None else n
    return [
        Draw(prompts[i % len(prompts)], mix(seed, PURPOSE, i) % 2**32)  # 32 bits: torch keeps those
        for i in range(count)
    ]


def image_path(folder: Path, arm: str, index: int) -> Path:
    return folder / "images" / arm / f"{index:06d}.png"


def draw_arm(
    folder: Path,
    name: str,
    adapter: Adapter | None,
    draws: Sequence[Draw],
    sampling: Sampling,
    progress: Callable[[Sequence[int]], Iterable[int]],
) -> None:
    """Draw the images of one arm that are not there yet; `progress` may end the loop early."""
    beside = [read_adapter(sampling.beside).digest] if sampling.beside else []
    own = [] if adapter is None else [adapter.digest]
    (folder / "images" / name).mkdir(parents=True, exist_ok=True)
    pin(folder / "images" / name / NOTE, " ".join(own + beside))
    missing = [i for i in range(len(draws)) if not image_path(folder, name, i).exists()]
    if not missing:
        return
    model = load_arm(sampling, adapter)
    text = encode(model, draws, sampling.device)
    model.drop_text_encoders()
    model.to(sampling.device)
    for start in progress(range(0, len(missing), sampling.batch)):
        chosen = missing[start : start + sampling.batch]
        rows = {name: part[chosen].to(sampling.device) for name, part in text.items()}
        images = draw_images(model, rows, [draws[i].seed for i in chosen], sampling)
        for index, image in zip(chosen, images, strict=True):
            write_image(image_path(folder, name, index), image)


def load_arm(sampling: Sampling, adapter: Adapter | None) -> DiffusionModel:
    """A fresh base for every arm, so that no adapter can leave a trace in the next; on the CPU."""
    options = guidance_options(sampling.guidance)
    model = load_base(sampling.base, dtype=DTYPES[sampling.dtype], **options)
    if sampling.beside is not None:
        fuse(model.network, read_adapter(sampling.beside))
    if adapter is not None:
        attach(model.network, adapter)
    quantise(model.network, sampling.quantise)
    return model


def encode(model: DiffusionModel, draws: Sequence[Draw], device: str) -> dict[str, Tensor]:
    """The conditioning of every draw, on the CPU; each prompt is read once.

    Before the network comes to the device: encoders and network together need not fit.
    """
    model.encoders_to(device)
    prompts = list(dict.fromkeys(draw.prompt for draw in draws))
    place = {prompt: row for row, prompt in enumerate(prompts)}
    chosen = [place[draw.prompt] for draw in draws]
    return {name: rows.cpu()[chosen] for name, rows in model.encode_prompts(prompts).items()}


def draw_images(
    model: DiffusionModel, text: Conditioning, seeds: Sequence[int], sampling: Sampling
) -> Images:
    return sample(
        model,
        text,
        list(seeds),
        steps=sampling.steps,
        height=sampling.height,
        width=sampling.width,
        batch=sampling.batch,
    )
