"""The oracle: an image and its category in, the nearest valid image and an exact artifact map out.

Minimum-edit decoding (render and compare) under "inlier Gaussian plus uniform outlier": a pixel's
label is the posterior odds that no valid image explains it. Proposals come from one product of
layer masks and robust palette costs over a pose grid; the best few are refined continuously in
pose and colour, so that a sound image off the grid is sound. It shares nothing with any detector.
Legend: b images, g proposals, k candidates, l layers, h w pixels.
"""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import cache

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from core.contracts import ArtifactMap, Images
from core.errors import UserError
from miniature.blobs import blob_sizes, without_specks
from miniature.law import CATEGORIES, LEXICON, SIZE, Scenes, all_prompts, scenes
from miniature.paint import coverages, render, visible

SIGMA = 0.07
"""Deviation of a valid pixel's RGB distance."""
EDGE = 0.2
"""Pixels by which an edge may be misplaced: deviation per unit of image gradient."""
CEILING = 9.1
"""-log of the outlier term: .02 (2 pi SIGMA^2)^1.5 / .98; beyond .30 RGB a pixel is an outlier."""
MAX_TINT = 0.10
BLOB = {"hand": 16, "face": 5, "bicycle": 16, "sign": 8, "scenery": 12}
"""Connected outlier pixels that make an artifact. Planted faults are still found at these sizes
(`miniature.calibrate`), and a wavering outline of a few pixels is no artifact."""
SEARCH = {
    "hand": (3.0, 3.0, 5.0, 1.0),
    "face": (3.0, 3.0, 1.0, 1.0),
    "bicycle": (2.0, 2.0, 1.0, 1.0),
    "sign": (1.5, 1.5, 1.0, 1.0),
    "scenery": (4.0, 2.0, 1.0, 4.0),
}
"""Largest spacing of the proposal grid in each pose coordinate."""
CHUNK = {"cpu": 32, "cuda": 256}
"""Images decoded together, by the kind of device."""


@dataclass(frozen=True)
class Diagnosis:
    """What the oracle found in a batch, in the batch's order."""

    map: ArtifactMap
    """Outlier posterior of every pixel, zero outside artifacts of at least `BLOB` pixels."""
    posterior: ArtifactMap
    flagged: Bool[Tensor, " b"]
    nearest: Images
    """The nearest valid image; differentiable targets for the ceiling."""
    factors: list[dict[str, str]]
    """The discrete factors of the nearest valid image."""
    pose: Float[Tensor, "b pose"]


@cache
def proposals(category: str) -> tuple[Scenes, Float[Tensor, "l g cells"]]:
    """Every kind at every pose of the search grid, with its visible layers at half resolution."""
    law = CATEGORIES[category]
    axes = [torch.arange(len(v)) for v in law.kinds.values()]
    for (low, high), step in zip(law.box.T, SEARCH[category], strict=True):
        low, high = float(low), float(high)
        count = 1 if low == high else 1 + int(-(-(high - low) // step))
        axes.append(torch.linspace(low, high, count))
    table = torch.cartesian_prod(*(axis.float() for axis in axes))
    kinds = {name: table[:, i].long() for i, name in enumerate(law.kinds)}
    grid = scenes(category, kinds, table[:, len(kinds) :].contiguous())
    chunks = [visible(coverages(grid[i : i + 64])) for i in range(0, len(grid), 64)]
    masks = torch.cat([F.avg_pool2d(chunk, 2).flatten(2) for chunk in chunks])
    return grid, masks.permute(1, 0, 2).contiguous()


def robust(squared: Tensor, variance: Tensor | float) -> Tensor:
    """-log(inlier + outlier) of squared residuals: quadratic near 0, flat at `CEILING`."""
    return -torch.logaddexp(-squared / (2 * variance), torch.tensor(-CEILING))


def outlier_posterior(squared: Tensor, variance: Tensor | float) -> Tensor:
    """Odds that a residual is an outlier: .5 where it reaches the ceiling."""
    return torch.sigmoid(squared / (2 * variance) - CEILING)


def variance(nearest: Images) -> Float[Tensor, "b h w"]:
    """Inlier variance: sensor noise everywhere, misplacement on edges."""
    padded = F.pad(nearest, (1, 1, 1, 1), mode="replicate")
    across = (padded[:, :, 1:-1, 2:] - padded[:, :, 1:-1, :-2]) / 2
    down = (padded[:, :, 2:, 1:-1] - padded[:, :, :-2, 1:-1]) / 2
    return SIGMA**2 + EDGE**2 * (across.pow(2) + down.pow(2)).sum(dim=1)


def propose(images: Images, category: str, keep: int) -> Scenes:
    """The `keep` best proposals of every image (b * keep scenes), with their best colours."""
    law = CATEGORIES[category]
    with torch.device("cpu"):  # kept for whichever device asks next
        kept, planes = proposals(category)
    grid, masks = kept.to(images.device), planes.to(images.device)
    total, best = torch.zeros(len(grid), len(images)), {}
    for mask, (layer, palette) in zip(masks, law.layers.items(), strict=True):
        colours = torch.tensor(list(palette.values()))
        squared = (images[:, None] - colours[None, :, :, None, None]).pow(2).sum(dim=2)
        cost = F.avg_pool2d(robust(squared, SIGMA**2), 2).flatten(2)  # (b, colours, cells)
        layer_cost = torch.einsum("gp,bcp->gbc", mask, cost)
        lowest = layer_cost.min(dim=2)
        total += lowest.values
        best[layer] = lowest.indices
    rows = total.topk(keep, dim=0, largest=False).indices.T.reshape(-1)
    columns = torch.arange(len(images)).repeat_interleave(keep)
    factors = {name: values[rows] for name, values in grid.factors.items()}
    factors |= {n: chosen[rows, columns] for n, chosen in best.items() if len(law.layers[n]) > 1}
    return scenes(category, factors, grid.pose[rows])


def energy(images: Images, scene: Scenes) -> Float[Tensor, " b"]:
    """Robust cost of explaining each image by its scene."""
    drawn = render(scene)
    return robust((images - drawn).pow(2).sum(dim=1), variance(drawn)).sum(dim=(1, 2))


def select(images: Images, candidates: Scenes, keep: int) -> Scenes:
    """The best `keep` of each image's candidates, by exact energy at full resolution."""
    each = len(candidates) // len(images)
    costs = energy(images.repeat_interleave(each, 0), candidates).view(len(images), each)
    chosen = costs.topk(keep, dim=1, largest=False).indices
    return candidates[(chosen + torch.arange(len(images))[:, None] * each).reshape(-1)]


ANNEALING = ((2, 9.0), (1, 4.0), (1, 1.0), (1, 1.0))
"""Pooling and factor on the variance in each round of `refine`: far edges pull first."""


def refine(images: Images, scene: Scenes) -> Scenes:
    """Gauss-Newton on the pose and a robust mean on the tints, kept inside the law's box."""
    low, high = CATEGORIES[scene.category].box
    free = [i for i in range(len(low)) if high[i] > low[i]]
    for pooling, widening in ANNEALING:
        layers = visible(coverages(scene))
        drawn = torch.einsum("blhw,blc->bchw", layers, scene.colours())
        residual, spread = images - drawn, variance(drawn) * widening
        weight = (1 - outlier_posterior(residual.pow(2).sum(dim=1), spread)) / spread
        weight = weight / weight.amax(dim=(1, 2), keepdim=True)
        slopes = torch.stack([(nudged(scene, i) - drawn) / 0.5 for i in free], dim=1)
        step = gauss_newton(pool(slopes, pooling), pool(residual, pooling), pool(weight, pooling))
        pose = scene.pose.clone()
        pose[:, free] = torch.clamp(pose[:, free] + step, low[free], high[free])
        seen = layers * weight[:, None]
        lift = torch.einsum("blhw,bchw->blc", seen, residual)
        lift = lift / (seen.sum(dim=(2, 3))[..., None] + 4.0)
        scene = replace(scene, pose=pose, tint=(scene.tint + lift).clamp(-MAX_TINT, MAX_TINT))
    return scene


def pool(values: Tensor, factor: int) -> Tensor:
    """Means over `factor` x `factor` pixels of the last two dimensions."""
    pooled = F.avg_pool2d(values.reshape(-1, 1, *values.shape[-2:]), factor)
    return pooled.view(*values.shape[:-2], *pooled.shape[-2:])


def nudged(scene: Scenes, coordinate: int) -> Images:
    """The render half a unit further in one pose coordinate."""
    pose = scene.pose.clone()
    pose[:, coordinate] += 0.5
    return render(replace(scene, pose=pose))


def gauss_newton(slopes: Tensor, residual: Images, weight: Tensor) -> Float[Tensor, "b free"]:
    """Damped solution of the weighted normal equations, at most 2 units a step."""
    weighted = slopes * weight[:, None, None]
    normal = torch.einsum("bichw,bjchw->bij", weighted, slopes)
    pull = torch.einsum("bichw,bchw->bi", weighted, residual)
    damping = torch.eye(normal.shape[1]) * 0.5
    return torch.linalg.solve(normal + damping, pull).clamp(-2, 2)


def decode(images: Images, category: str) -> Scenes:
    """The nearest valid scene of each image: one candidate refined, more where it still errs."""
    ranked = select(images, propose(images, category, keep=6), keep=3)
    best = swap(images, refine(images, ranked[torch.arange(len(images)) * 3]))
    drawn = render(best)
    odds = outlier_posterior((images - drawn).pow(2).sum(dim=1), variance(drawn))
    unsure = (blob_sizes(odds > 0.5).amax(dim=(1, 2)) >= BLOB[category] // 2).nonzero()[:, 0]
    if len(unsure):
        hard = images[unsure]
        rows = (unsure[:, None] * 3 + torch.arange(1, 3)).reshape(-1)
        others = refine(hard.repeat_interleave(2, 0), ranked[rows])
        found = select(hard, interleave(best[unsure], others), keep=1)
        # A far start is not there after one descent: 1 % of valid hands stopped 2 degrees short.
        further = swap(hard, refine(hard, found), most=len(LEXICON))
        best = put(best, unsure, select(hard, interleave(found, further), keep=1))
    return best


def swap(images: Images, scene: Scenes, most: int = 3) -> Scenes:
    """Each kind of at most `most` values in turn set to whichever explains the image best.

    The proposals' coarse cost confuses small shapes: a smile and a flat mouth in 3 to 12 % of
    faces, a word in 1 % of signs off the grid.
    """
    for name, values in CATEGORIES[scene.category].kinds.items():
        if len(values) <= most:
            index = torch.arange(len(scene)).repeat_interleave(len(values))
            every = scene[index]
            every.factors[name] = torch.arange(len(values)).repeat(len(scene))
            scene = select(images, every, keep=1)
    return scene


def interleave(first: Scenes, others: Scenes) -> Scenes:
    """first[0], its share of others, first[1], ...: the candidates of each image side by side."""
    each = len(others) // len(first)
    order = []
    for i in range(len(first)):
        order += [i, *range(len(first) + each * i, len(first) + each * (i + 1))]
    return joined(first, others)[torch.tensor(order)]


def joined(a: Scenes, b: Scenes) -> Scenes:
    factors = {name: torch.cat([a.factors[name], b.factors[name]]) for name in a.factors}
    return Scenes(a.category, factors, torch.cat([a.pose, b.pose]), torch.cat([a.tint, b.tint]))


def put(whole: Scenes, rows: Tensor, part: Scenes) -> Scenes:
    """`whole` with some rows replaced."""
    order = torch.arange(len(whole))
    order[rows] = len(whole) + torch.arange(len(rows))
    return joined(whole, part)[order]


class Oracle:
    """The exact judge of the miniature world; call it with images and their prompts."""

    differentiable = False

    def __call__(self, images: Images, prompts: Sequence[str]) -> ArtifactMap:
        return self.diagnose(images, prompts).map

    @torch.no_grad()
    def diagnose(
        self,
        images: Images,
        prompts: Sequence[str],
        progress: Callable[[int], None] = lambda n: None,
    ) -> Diagnosis:
        """Diagnose images under the categories their prompts name; `progress` gets counts.

        On the images' device, and what is found stays there.
        """
        check(images, prompts)
        names = [categories()[prompt] for prompt in prompts]
        found: list[tuple[Tensor, Scenes]] = []
        # What the law and the painter make, they make there; on the CPU they do anyway, faster.
        with nullcontext() if images.device.type == "cpu" else images.device:
            for category in CATEGORIES:
                rows = torch.tensor([i for i, n in enumerate(names) if n == category]).long()
                for part in rows.split(CHUNK.get(images.device.type, CHUNK["cpu"])):
                    if len(part):
                        found.append((part, decode(images[part], category)))
                        progress(len(part))
            return self._report(images, found)

    def _report(self, images: Images, found: list[tuple[Tensor, Scenes]]) -> Diagnosis:
        nearest, pose = torch.zeros_like(images), torch.zeros(len(images), 4)
        least = torch.zeros(len(images), 1, 1)
        factors: list[dict[str, str]] = [{} for _ in images]
        for rows, scene in found:
            nearest[rows], pose[rows] = render(scene), scene.pose
            least[rows] = BLOB[scene.category]
            for i, row in enumerate(rows.tolist()):
                factors[row] = {name: scene.value(i, name) for name in scene.factors}
        squared = (images - nearest).pow(2).sum(dim=1)
        posterior = outlier_posterior(squared, variance(nearest))
        map = without_specks(posterior[:, None], least)
        return Diagnosis(
            map=map,
            posterior=posterior[:, None],
            flagged=(map > 0.5).flatten(1).any(dim=1),
            nearest=nearest,
            factors=factors,
            pose=pose,
        )


@cache
def categories() -> dict[str, str]:
    """prompt -> category, for every prompt of the world."""
    return {prompt: category for prompt, (category, _) in all_prompts().items()}


def check(images: Images, prompts: Sequence[str]) -> None:
    if images.shape[1:] != (3, SIZE, SIZE):
        raise UserError(
            f"The oracle judges {SIZE}x{SIZE} RGB images, not {tuple(images.shape[1:])}: "
            "resize them, or use a detector instead."
        )
    unknown = [p for p in prompts if p not in categories()]
    if unknown:
        raise UserError(
            f"The oracle does not know the prompt {unknown[0]!r}: use prompts of "
            "`diffdoctor miniature render` (they are in its prompts.jsonl)."
        )
