"""The treated model in; figures and pictures of the same prompts and seeds out, step after step.

The second detector never taught the model: where its score rises beyond chance, healing has turned
into hacking. The loss on real images tells the same from another side.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from base_models.sample import around, decode
from core import seeds as seeding
from core.contracts import ArtifactMap, Conditioning, Detector, Images
from core.heatmap import overlay, write_map
from core.images import contact_sheet, read_images, write_image
from core.storage import write_atomic
from treat.guard import FIT, SECOND, SECOND_SELECTED, SELECTED, changes, sharpness
from treat.image_reward import ImageReward
from treat.lora import adapter_off, lora_parameters, weights_moved
from treat.offline import LATENTS, RealRows
from treat.texts import Sampler
from treat.update import OFFLINE, WATCH

PerImage = Float[Tensor, " b"]
DetectorFor = Callable[[list[str]], Detector]
"""A detector for images of these prompts; most look at the images alone."""
FLAGGED = 0.5
"""An image counts when its surest pixel reaches this (DIAMOND, arXiv 2602.00883)."""


def always(detector: Detector) -> DetectorFor:
    """One that looks at the images alone."""
    return lambda prompts: detector


def scores(maps: ArtifactMap, name: str) -> dict[str, float]:
    """Share of images flagged, and mean share of pixels flagged."""
    return {
        f"{name}_frequency": (maps.amax((1, 2, 3)) >= FLAGGED).float().mean().item(),
        f"{name}_area": (maps >= FLAGGED).float().mean().item(),
        f"{name}_mean": maps.mean().item(),
    }


class Resting:
    """A frozen network that only looks: on the device while it does, in the host's memory else.

    No update needs it there. Moving a SegFormer-b5 or a CLIP costs a fraction of a drawing.
    """

    differentiable = False

    def __init__(self, network: nn.Module):
        self.network = network

    def __call__(self, images: Images, *rest: Any) -> Any:
        self.network.to(images.device)
        try:
            return self.network(images, *rest)
        finally:
            self.network.to("cpu")


class Watcher:
    """Looks at the treated model: held-out prompts and seeds, held-out real images, pictures."""

    def __init__(
        self,
        sampler: Sampler,
        detectors: Mapping[str, DetectorFor],
        scorer: ImageReward | Resting | None,
        real: RealRows | None,
        seed: int,
        threshold: float,
    ):
        self.sampler, self.detectors, self.scorer = sampler, detectors, scorer
        self.real, self.seed, self.threshold = real, seed, threshold
        factors = [w.detach().cpu().clone() for w in lora_parameters(sampler.model.network)]
        self.start = factors if any(b.any() for b in factors[1::2]) else []
        """The adapters that were taken up, if any."""
        self.base_seen: dict[str, PerImage] | None = None
        """What detectors and image reward say of the base's images; None when one has changed."""
        self.second: list[float] = []
        """What the second detector says of each image of the last look: the mean of its map."""

    def figures(self, kept: Path | None, step: int) -> dict[str, float]:
        """Scores of every detector by name, the meters of `treat.guard`, the loss on real images.

        The images stay in `kept`, so that a judge who must not take part can read them later. None:
        another process keeps them, and this one only draws along.
        """
        images, first = self.draw(kept, step)
        lost = {} if self.real is None or not len(self.real.held) else self._offline(self.real)
        if kept is None:
            return lost
        said = self.sampler.texts.said(self.sampler.texts.held)
        weights = lora_parameters(self.sampler.model.network)
        figures = {
            "sharpness": sharpness(images).mean().item(),
            "adapter_norm": sum(w.detach().float().square().sum().item() for w in weights) ** 0.5,
            "weights_moved": weights_moved(self.sampler.model.network, self.start),
        }
        seen = {}
        for name, detector in self.detectors.items():
            maps = first.pop(name, None)
            maps = self._maps(detector, images, said) if maps is None else maps
            figures |= scores(maps, name)
            seen |= self._per_image(name, maps)
        self.second = seen[SECOND].tolist() if SECOND in seen else []
        if SELECTED in seen:
            figures[SELECTED] = seen[SELECTED].mean().item()
        if self.scorer is not None:
            seen[FIT] = self._fit(self.scorer, images, said)
            figures[FIT] = seen[FIT].mean().item()
        if step:
            figures |= self._changes(images, seen, kept / f"step-{0:08d}")
        return figures | lost

    def draw(self, kept: Path | None, step: int) -> tuple[Images, dict[str, ArtifactMap]]:
        """Images of what is watched, the first detector's maps by its name; both stay in `kept`.

        kept/prompts.jsonl  kept/step-00000025/00000.png  kept/step-00000025/maps/00000.png

        None: as with `figures`, and no maps.
        """
        texts, maps = self.sampler.texts, {}
        images = self.sampler(texts.held, self._seeds(len(texts.held)))
        if kept is None:
            return images, maps
        said, look = texts.said(texts.held), kept / f"step-{step:08d}"
        (look / "maps").mkdir(parents=True, exist_ok=True)
        lines = [json.dumps({"prompt": prompt}) + "\n" for prompt in said]
        write_atomic(kept / "prompts.jsonl", "".join(lines).encode())
        for name, detector in list(self.detectors.items())[:1]:
            maps[name] = self._maps(detector, images, said)
            for i, one in enumerate(maps[name]):
                write_map(look / f"maps/{i:05d}.png", one)
        for i, image in enumerate(images):
            write_image(look / f"{i:05d}.png", image)
        return images, maps

    def real_frequency(self) -> float | None:
        """Share of held-out real images that the reward's detector flags, as the base shows them.

        None without any. What it flags there it will flag everywhere, and cannot teach.
        """
        detector = self.detectors.get("reward")
        if self.real is None or detector is None or not len(self.real.held):
            return None
        sampler, shown = self.sampler, []
        with torch.no_grad():
            for at in range(0, len(self.real.held), sampler.batch):
                clean, _ = split_rows(self.real.rows(self.real.held[at : at + sampler.batch]))
                images = decode(sampler.model, clean, sampler.precision)
                shown.append(images.clamp(0, 1).float().cpu())
        maps = self._maps(detector, torch.cat(shown), self.real.said(self.real.held))
        return scores(maps, "real")["real_frequency"]

    def picture(self) -> Float[Tensor, "3 h w"]:
        """One line a prompt: the base's image, the treated one, and each with its map laid over."""
        texts = self.sampler.texts
        rows, prompts = texts.pictures, texts.said(texts.pictures)
        seeds = self._seeds(len(rows))
        with adapter_off(self.sampler.model.network):
            base = self.sampler(rows, seeds)
        columns, names = [base, self.sampler(rows, seeds)], ["base", "treated"]
        for detector in list(self.detectors.values())[:1]:
            columns += [
                overlay(images, self._maps(detector, images, prompts)) for images in columns
            ]
            names += ["base, map", "treated, map"]
        lines = [[column[i] for column in columns] for i in range(len(rows))]
        return contact_sheet(lines, [short(prompt) for prompt in prompts], names)

    def _changes(
        self, images: Images, seen: Mapping[str, PerImage], folder: Path
    ) -> dict[str, float]:
        """Against the base's images, as they were kept at step 0."""
        files = kept_images(folder)
        if len(files) != len(images):
            return {}
        base = read_images(files)
        if self.base_seen is None:
            said = self.sampler.texts.said(self.sampler.texts.held)
            self.base_seen = {}
            for name, detector in self.detectors.items():
                self.base_seen |= self._per_image(name, self._maps(detector, base, said))
            if self.scorer is not None:
                self.base_seen[FIT] = self._fit(self.scorer, base, said)
        return changes(images, base, {n: (s, self.base_seen[n]) for n, s in seen.items()})

    def _per_image(self, name: str, maps: ArtifactMap) -> dict[str, PerImage]:
        """What the guard is told of one detector's maps."""
        share = (maps > self.threshold).float().mean((1, 2, 3))
        if name != SECOND:
            return {SELECTED: share}
        return {SECOND: maps.mean((1, 2, 3)), SECOND_SELECTED: share}

    def _seeds(self, n: int) -> list[int]:
        return [seeding.mix(self.seed, WATCH, i) for i in range(n)]

    @torch.no_grad()
    def _maps(self, detector: DetectorFor, images: Images, prompts: list[str]) -> ArtifactMap:
        batch, device = self.sampler.batch, self.sampler.texts.device
        parts = []
        for at in range(0, len(images), batch):
            look = detector(prompts[at : at + batch])
            parts.append(look(images[at : at + batch].to(device)).float().cpu())
        return torch.cat(parts)

    @torch.no_grad()
    def _fit(self, scorer: ImageReward | Resting, images: Images, prompts: list[str]) -> PerImage:
        batch, device = self.sampler.batch, self.sampler.texts.device
        parts = [
            scorer(images[at : at + batch].to(device), prompts[at : at + batch]).cpu()
            for at in range(0, len(images), batch)
        ]
        return torch.cat(parts)

    @torch.no_grad()
    def _offline(self, real: RealRows) -> dict[str, float]:
        """The same real images at the same noise and times, whatever the step."""
        batch, total = self.sampler.batch, 0.0
        for at in range(0, len(real.held), batch):
            rows = real.held[at : at + batch]
            clean, text = split_rows(real.rows(rows))
            seeds = [seeding.mix(self.seed, WATCH, OFFLINE, row) for row in rows]
            model = self.sampler.model
            with around(model.network, self.sampler.precision):
                total += model.offline_loss(clean, text, seeds).item() * len(rows)
        return {"watch_offline": total / len(real.held)}


def kept_images(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.png"))


def split_rows(rows: Mapping[str, Tensor]) -> tuple[Tensor, Conditioning]:
    """Latents, and the conditioning, of cached real images."""
    return rows[LATENTS], {name: rows[name] for name in rows if name != LATENTS}


def short(prompt: str, length: int = 40) -> str:
    return prompt if len(prompt) <= length else prompt[: length - 3] + "..."
