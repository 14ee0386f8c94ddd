"""Images and soft labels in, harder images and labels that still fit out.

Appearance (labels unchanged): blur and unsharp, contrast, saturation, brightness, noise, small
adversarial steps. It is what stops a treatment from hacking the detector (the worst hack was
contrast). Geometry (labels move along): mirror, shift and scale, shrink-and-pad. Patches out of
place are artifacts whose labels are known.
Every function is pure in its `torch.Generator`, batched, float32, and draws on the CPU.

Legend: b images, h w pixels; every image draws its own strengths.
"""

from collections.abc import Callable

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from core.contracts import ArtifactMap, Images
from detector.augmentation import Augmentation
from detector.patches import corrupt, unit

BLUR_TAPS = (-2, -1, 0, 1, 2)
LUMA = (0.299, 0.587, 0.114)
BRUSH = 2
"""Sixty-fourths of the side that a person's brush adds around an artifact."""


def augment(
    images: Images,
    target: ArtifactMap,
    settings: Augmentation,
    generator: Generator,
    may_flip: Tensor | None = None,
) -> tuple[Images, ArtifactMap]:
    """Geometry, patches, appearance; `may_flip` (b,) bool. The adversarial step is separate."""
    if settings.flip:
        images, target = mirror(images, target, generator, may_flip)
    images, target = shift_and_scale(images, target, generator, settings.move)
    images, target = shrink_sound(
        images,
        target,
        generator,
        chance=settings.shrink,
        below=settings.shrink_below,
        scale=settings.shrink_scale,
    )
    images, target = misplace(images, target, generator, settings.patches)
    return change_appearance(images, settings, generator), target


def misplace(
    images: Images, target: ArtifactMap, generator: Generator, chance: float
) -> tuple[Images, ArtifactMap]:
    """A patch out of place (`detector.patches`); its label as wide as a brush would paint it."""
    if chance == 0:
        return images, target
    broken, changed = corrupt(images, images.roll(1, 0), generator)
    reach = round(BRUSH * unit(images))
    mark = F.max_pool2d(changed[:, None].to(target.dtype), 2 * reach + 1, 1, reach)
    chosen = _chosen(len(images), chance, generator, images)
    return (
        torch.where(chosen, broken, images),
        torch.where(chosen, torch.maximum(target, mark), target),
    )


def change_appearance(images: Images, settings: Augmentation, generator: Generator) -> Images:
    """Each chosen image gets every change at its own strength; clamped to [0, 1]."""
    if settings.appearance == 0:
        return images
    chosen = _chosen(len(images), settings.appearance, generator, images)
    changed = sharpen(
        images, _uniform(len(images), *settings.sharpness, generator, images), generator
    )
    changed = scale_contrast(changed, _uniform(len(images), *settings.contrast, generator, images))
    changed = scale_saturation(
        changed, _uniform(len(images), *settings.saturation, generator, images)
    )
    shift = settings.brightness
    changed = changed + _uniform(len(images), -shift, shift, generator, images)
    changed = add_noise(
        changed, _uniform(len(images), 0.0, settings.noise, generator, images), generator
    )
    return torch.where(chosen, changed.clamp(0, 1), images)


def sharpen(images: Images, amount: Tensor, generator: Generator) -> Images:
    """x + amount (x - blur(x)): -1 blurs, above 0 sharpens; the blur's sigma is drawn per image."""
    sigma = _uniform(len(images), 0.4, 1.5, generator, images)
    return images + amount * (images - gaussian_blur(images, sigma))


def gaussian_blur(images: Images, sigma: Tensor) -> Images:
    """Separable five-tap blur, its own sigma (b, 1, 1, 1) in pixels for each image."""
    b, c, h, w = images.shape
    taps = torch.tensor(BLUR_TAPS, dtype=images.dtype, device=images.device)
    kernel = torch.exp(-0.5 * (taps / sigma.view(b, 1)) ** 2)
    kernel = (kernel / kernel.sum(1, keepdim=True)).repeat_interleave(c, dim=0)
    flat = F.pad(images.reshape(1, b * c, h, w), (2, 2, 2, 2), mode="replicate")
    flat = F.conv2d(flat, kernel.view(-1, 1, 1, 5), groups=b * c)
    return F.conv2d(flat, kernel.view(-1, 1, 5, 1), groups=b * c).view(b, c, h, w)


def scale_contrast(images: Images, factor: Tensor) -> Images:
    """Around each image's mean luminance."""
    middle = _gray(images).mean(dim=(2, 3), keepdim=True)
    return middle + factor * (images - middle)


def scale_saturation(images: Images, factor: Tensor) -> Images:
    """Around each pixel's luminance; 0 is gray."""
    gray = _gray(images)
    return gray + factor * (images - gray)


def add_noise(images: Images, deviation: Tensor, generator: Generator) -> Images:
    """Gaussian, independent for every value."""
    noise = torch.randn(images.shape, generator=generator, dtype=images.dtype)
    return images + deviation * noise.to(images.device)


def step_lengths(n: int, largest: float, generator: Generator, like: Tensor) -> Tensor:
    """For `adversarial_step`, from 0 to the largest."""
    return _uniform(n, 0.0, largest, generator, like)


def adversarial_step(
    images: Images,
    target: ArtifactMap,
    loss: Callable[[Images, ArtifactMap], Tensor],
    lengths: Tensor,
) -> Images:
    """One fast-gradient-sign step up the detector's loss; `lengths` (b, 1, 1, 1), one an image."""
    with torch.enable_grad():
        images = images.detach().requires_grad_(True)
        (gradient,) = torch.autograd.grad(loss(images, target), images)
    return (images.detach() + lengths * gradient.sign()).clamp(0, 1)


def mirror(
    images: Images, target: ArtifactMap, generator: Generator, may_flip: Tensor | None = None
) -> tuple[Images, ArtifactMap]:
    """Left-right with chance one half, where `may_flip` (b,) allows it."""
    chosen = _chosen(len(images), 0.5, generator, images)
    if may_flip is not None:
        chosen = chosen & may_flip.to(images.device).view(-1, 1, 1, 1)
    return (
        torch.where(chosen, images.flip(-1), images),
        torch.where(chosen, target.flip(-1), target),
    )


def shift_and_scale(
    images: Images, target: ArtifactMap, generator: Generator, chance: float
) -> tuple[Images, ArtifactMap]:
    """Shift up to 10 % of the side, scale 0.85 to 1.2; edges repeat, labels beyond them are 0."""
    if chance == 0:
        return images, target
    b = len(images)
    chosen = _chosen(b, chance, generator, images)
    scale = _uniform(b, 0.85, 1.2, generator, images).view(b)
    shift = torch.cat([_uniform(b, -0.2, 0.2, generator, images).view(b, 1) for _ in "xy"], dim=1)
    moved = _resample(images, scale, shift, "border")
    return (
        torch.where(chosen, moved, images),
        torch.where(chosen, _resample(target, scale, shift, "zeros"), target),
    )


def shrink_sound(
    images: Images,
    target: ArtifactMap,
    generator: Generator,
    *,
    chance: float,
    below: float,
    scale: tuple[float, float],
) -> tuple[Images, ArtifactMap]:
    """Dynamic augmentation: images whose label never reaches `below` are shrunk and padded back.

    So small but sound hands and faces appear among the negatives. The image lands anywhere in the
    frame, on a gray of its own; the label shrinks along.
    """
    if chance == 0:
        return images, target
    b = len(images)
    sound = target.flatten(1).amax(dim=1).view(b, 1, 1, 1) < below
    chosen = _chosen(b, chance, generator, images) & sound
    factor = _uniform(b, *scale, generator, images)
    room = 1 - factor.view(b, 1)
    place = torch.cat([_uniform(b, -1.0, 1.0, generator, images).view(b, 1) for _ in "xy"], dim=1)
    gray = _uniform(b, 0.0, 1.0, generator, images)
    if not chosen.any():
        return images, target
    factor, shift = factor.view(b), place * room
    # Aliasing is softened first: bilinear sampling alone would skip pixels below half size.
    soft = gaussian_blur(images, (0.45 / factor).clamp(0.45, 1.5).view(b, 1, 1, 1))
    inside = _resample(torch.ones_like(target), factor, shift, "zeros")
    small = _resample(soft, factor, shift, "border")
    return (
        torch.where(chosen, inside * small + (1 - inside) * gray, images),
        torch.where(chosen, _resample(target, factor, shift, "zeros"), target),
    )


def _resample(x: Tensor, scale: Tensor, shift: Tensor, padding: str) -> Tensor:
    """Scale (b,) about the centre, then shift (b, 2) right and down, in half sides."""
    theta = torch.zeros(len(x), 2, 3, dtype=x.dtype, device=x.device)
    theta[:, 0, 0] = theta[:, 1, 1] = 1 / scale
    theta[:, :, 2] = -shift / scale.view(-1, 1)
    grid = F.affine_grid(theta, list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, mode="bilinear", padding_mode=padding, align_corners=False)


def _gray(images: Images) -> Tensor:
    weights = torch.tensor(LUMA, dtype=images.dtype, device=images.device)
    return (images * weights.view(1, 3, 1, 1)).sum(dim=1, keepdim=True)


def _uniform(b: int, low: float, high: float, generator: Generator, like: Tensor) -> Tensor:
    """(b, 1, 1, 1) in [low, high)."""
    drawn = torch.rand(b, 1, 1, 1, generator=generator, dtype=like.dtype)
    return (low + (high - low) * drawn).to(like.device)


def _chosen(b: int, chance: float, generator: Generator, like: Tensor) -> Tensor:
    return (torch.rand(b, 1, 1, 1, generator=generator) < chance).to(like.device)
