"""The oracle for images that were asked for nothing: images in, what `miniature.meters` says out.

An unconditional base draws any category. Each image is judged under the one in which it is least
flawed, as a benevolent reader would take it.
"""

from collections.abc import Callable, Sequence
from typing import final

import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor

from core.contracts import ArtifactMap, Images
from miniature.law import CATEGORIES, all_prompts
from miniature.oracle import Diagnosis, Oracle

NAME = "the oracle of the miniature (nearest valid image of any category)"


@final
class Unprompted:
    """Behind the questions of `treat.evaluate.main`; prompts are taken and not read."""

    def __init__(self, diagnose: Callable[[Images, Sequence[str]], Diagnosis] | None = None):
        self.diagnose = diagnose or Oracle().diagnose
        self.asked = {category: prompt for prompt, (category, _) in all_prompts().items()}
        self._last: tuple[Tensor, tuple[ArtifactMap, Tensor, list[str]]] | None = None

    def judge(self, images: Images, prompts: Sequence[str]) -> ArtifactMap:
        return self._seen(images)[0]

    def flagged(self, images: Images, prompts: Sequence[str]) -> Bool[np.ndarray, " b"]:
        return self._seen(images)[1].numpy()

    def meters(self, images: Images, prompts: Sequence[str]) -> dict[str, np.ndarray]:
        return {"category": np.array(self._seen(images)[2])}

    def _seen(self, images: Images) -> tuple[ArtifactMap, Tensor, list[str]]:
        """Map, whether it is flagged, and the category, of each image; it looks once a batch."""
        if self._last is None or not torch.equal(self._last[0], images):
            self._last = images.clone(), self._look(images)
        return self._last[1]

    def _look(self, images: Images) -> tuple[ArtifactMap, Tensor, list[str]]:
        names = list(CATEGORIES)
        found = [self.diagnose(images, [self.asked[name]] * len(images)) for name in names]
        flaws = torch.stack([one.posterior.mean(dim=(1, 2, 3)) for one in found])
        best = flaws.argmin(dim=0)
        rows = torch.arange(len(images))
        maps = torch.stack([one.map for one in found])[best, rows]
        flags = torch.stack([one.flagged for one in found])[best, rows]
        return maps, flags, [names[i] for i in best.tolist()]
