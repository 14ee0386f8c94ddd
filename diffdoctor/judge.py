"""The miniature's oracle as the judge of an evaluation: images and prompts in, every reading out.

`treat.evaluate` asks for maps, for what is flagged and for meters, one after the other and of the
same batch; the oracle looks once and the answers are kept until the next batch comes.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from core.contracts import ArtifactMap, Images
from miniature.law import CATEGORIES, POSE, all_prompts
from miniature.oracle import Diagnosis, Oracle

NAME = "the oracle of the miniature (nearest valid image)"


class OracleJudge:
    """One oracle behind the three questions of `treat.evaluate.main`."""

    def __init__(self) -> None:
        self.oracle = Oracle()
        self.table = all_prompts()
        self._last: tuple[Tensor, tuple[str, ...], Diagnosis] | None = None

    def __call__(self, images: Images, prompts: Sequence[str]) -> ArtifactMap:
        return self.diagnosis(images, prompts).map

    def flagged(self, images: Images, prompts: Sequence[str]) -> np.ndarray:
        """True where the oracle's calibrated rule finds an artifact."""
        return self.diagnosis(images, prompts).flagged.numpy()

    def meters(self, images: Images, prompts: Sequence[str]) -> dict[str, np.ndarray]:
        """Category, share of the stated attributes found, and every factor as a class index.

        Factors that the prompt states are `stated.<category>.<name>`, the others
        `free.<category>.<name>`; the pose is free, each coordinate by its nearest grid value.
        """
        found = self.diagnosis(images, prompts)
        said = [self.table[prompt] for prompt in prompts]
        match = [
            np.mean([read[name] == value for name, value in stated.items()])
            for (_, stated), read in zip(said, found.factors, strict=True)
        ]
        names = np.array([category for category, _ in said])
        meters = {"category": names, "attribute_match": np.array(match, float)}
        for category in CATEGORIES:
            meters |= self._factors(category, names == category, found)
        return meters

    def diagnosis(self, images: Images, prompts: Sequence[str]) -> Diagnosis:
        last = self._last
        if last is None or last[1] != tuple(prompts) or not torch.equal(last[0], images):
            self._last = last = images, tuple(prompts), self.oracle.diagnose(images, prompts)
        return last[2]

    def _factors(self, category: str, rows: np.ndarray, found: Diagnosis) -> dict[str, np.ndarray]:
        """Class indices of one category's factors; -1 for images of other categories."""
        law = CATEGORIES[category]
        columns = {}
        for name, values in law.factors.items():
            kind = "stated" if name in law.stated else "free"
            read = [
                values.index(factors[name]) if here else -1
                for factors, here in zip(found.factors, rows, strict=True)
            ]
            columns[f"{kind}.{category}.{name}"] = np.array(read, int)
        for i, (name, grid) in enumerate(zip(POSE, law.grid, strict=True)):
            if len(grid) > 1:
                near = (found.pose[:, i, None] - torch.tensor(grid)).abs().argmin(dim=1).numpy()
                columns[f"free.{category}.{name}"] = np.where(rows, near, -1)
        return columns
