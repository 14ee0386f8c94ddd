"""A detector and labelled samples in, the same detector a little wiser out: the training step.

Everything random is a pure function of (seed, step), so that a state of weights, moments and
averages is all there is to resume. Legend: b batch, h w pixels.
"""

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from core.checkpoint import optimizer_tensors, restore_optimizer
from core.contracts import ArtifactMap, Images
from core.errors import UserError
from core.muon import Muon
from core.samples import Record, Sample
from core.seeds import generator, mix
from detector.alignment import JITTER, misalignment
from detector.augment import adversarial_step, step_lengths
from detector.augmentation import Augmentation
from detector.data import nearest, reference_batch, training_batch
from detector.losses import LOSSES, Loss
from detector.maps import upsample
from detector.names import OptimizerName
from detector.parallel import WHOLE, Share
from detector.quotas import Quotas
from detector.segformer import SegformerDetector
from detector.sources import Chosen

N = TypeVar("N", bound=nn.Module)

ADVERSARY, DROPOUT, JITTERED = 105, 106, 108
MOST_SKIPPED = 5
"""Steps in a row that may give no finite gradient before the training stops."""


def learning_rate(
    step: int, steps: int, peak: float, warmup: int, decay: str = "poly", power: float = 1.0
) -> float:
    """At step 0 .. steps - 1: a linear warm-up, then (1 - t)^power or a half cosine to zero."""
    if step < warmup:
        return peak * (step + 1) / warmup
    t = (step - warmup) / max(1, steps - warmup)
    return peak * ((1 - t) ** power if decay == "poly" else 0.5 * (1 + math.cos(math.pi * t)))


def make_optimizers(
    model: nn.Module, kind: OptimizerName, weight_decay: float
) -> dict[str, torch.optim.Optimizer]:
    """AdamW for every weight; or Muon for what mixes many channels, AdamW for the rest."""
    weights = [p for p in model.parameters() if p.requires_grad]
    inner = [p for p in weights if kind == "muon" and mixes(p)]
    taken = {id(p) for p in inner}
    rest = [p for p in weights if id(p) not in taken]
    groups = [
        {"params": [p for p in rest if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in rest if p.ndim <= 1], "weight_decay": 0.0},
    ]
    adamw = torch.optim.AdamW(groups, lr=0.0, betas=(0.9, 0.99))
    return {"adamw": adamw, "muon": Muon(inner, lr=0.0)} if inner else {"adamw": adamw}


def mixes(weight: Tensor) -> bool:
    """A matrix or kernel from several channels to several: no norm, depthwise kernel or bias."""
    return weight.ndim > 1 and min(weight.shape[:2]) > 1


@dataclass
class Learner(Generic[N]):
    """Weights, their moments and their average: all the state that training has."""

    model: N
    weight_decay: float = 0.01
    ema: float = 0.0
    """Decay of the average of weights and batch statistics; 0 keeps none."""
    optimizer: OptimizerName = "adamw"
    skipped: int = 0
    optimizers: dict[str, torch.optim.Optimizer] = field(init=False)
    average: dict[str, Tensor] = field(init=False)

    def __post_init__(self) -> None:
        self.optimizers = make_optimizers(self.model, self.optimizer, self.weight_decay)
        self.average = {name: t.detach().clone() for name, t in self._state().items()}

    def update(
        self, loss: Tensor, rate: float, clip: float, step: int, share: Share = WHOLE
    ) -> float:
        """One optimizer step on the gradient of all shares; returns its norm before clipping.

        A gradient that is not finite changes nothing; the fifth in a row raises `UserError`.
        """
        self.model.zero_grad(set_to_none=True)
        loss.backward()
        share.average_gradients([p for p in self.model.parameters() if p.requires_grad])
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), clip).item()
        (value,) = share.mean([loss.item()], loss.device)
        if not math.isfinite(norm) or not math.isfinite(value):
            self._skip(step)
            return norm
        self.skipped = 0
        for optimizer in self.optimizers.values():
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.step()
        self._follow(step)
        return norm

    @contextlib.contextmanager
    def averaged(self) -> Iterator[N]:
        """The model in eval mode, with the averaged weights while the block runs."""
        own = {name: t.detach().clone() for name, t in self._state().items()}
        self._put(self.average if self.ema else own)
        training = self.model.training
        self.model.eval()
        try:
            yield self.model
        finally:
            self._put(own)
            self.model.train(training)

    def settle(self) -> None:
        """The averaged weights for good; nothing is learnt any more."""
        self._put(self.average if self.ema else self._state())
        self.model.eval()

    def pack(self) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
        """Tensors by file stem, and JSON state, for `core.checkpoint.save`."""
        tensors = {"weights": dict(self._state()), "average": self.average}
        state: dict[str, Any] = {"skipped": self.skipped}
        for name, optimizer in self.optimizers.items():
            tensors[name], state[name] = optimizer_tensors(optimizer)
        return tensors, state

    def unpack(self, tensors: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, Any]) -> None:
        """Take up what `pack` gave; raises `UserError` for a checkpoint of another optimizer."""
        missing = [name for name in self.optimizers if name not in tensors]
        if missing:
            raise UserError(
                f"the checkpoint holds no state of {missing[0]}: it was written by an earlier "
                "version; give another --out."
            )
        self._put(tensors["weights"])
        self.average = {
            name: tensors["average"][name].to(tensor.device, copy=True)
            for name, tensor in self._state().items()
        }
        for name, optimizer in self.optimizers.items():
            moments = {key: t.clone() for key, t in tensors[name].items()}
            restore_optimizer(optimizer, moments, state[name])
        self.skipped = state["skipped"]

    def _state(self) -> dict[str, Tensor]:
        return self.model.state_dict()

    @torch.no_grad()
    def _put(self, values: Mapping[str, Tensor]) -> None:
        for name, tensor in self._state().items():
            tensor.copy_(values[name])

    @torch.no_grad()
    def _follow(self, step: int) -> None:
        """The average starts short-sighted, so that the first weights are soon forgotten."""
        if not self.ema:
            return
        decay = min(self.ema, (1 + step) / (10 + step))
        for name, tensor in self._state().items():
            if tensor.is_floating_point():
                self.average[name].lerp_(tensor, 1 - decay)
            else:
                self.average[name].copy_(tensor)

    def _skip(self, step: int) -> None:
        self.model.zero_grad(set_to_none=True)
        self.skipped += 1
        if self.skipped >= MOST_SKIPPED:
            raise UserError(
                f"{MOST_SKIPPED} steps in a row gave no finite gradient (last: step {step}); "
                "lower --learning-rate, or check the data."
            )


def batch_loss(
    detector: SegformerDetector,
    images: Images,
    target: ArtifactMap,
    loss: Loss,
    autocast: bool = False,
) -> Tensor:
    """The loss of one batch at the images' own size; bf16 autocast for the network if asked."""
    with torch.autocast(images.device.type, torch.bfloat16, enabled=autocast):
        logits = detector.logits(images)
    return loss(upsample(logits.float(), target.shape[-2:]), target)


def harden(
    detector: SegformerDetector,
    images: Images,
    target: ArtifactMap,
    loss: Loss,
    augmentation: Augmentation,
    *,
    seed: int,
    step: int,
    share: Share = WHOLE,
) -> Images:
    """The first part of the global batch takes a small step against the detector (labels stay).

    In eval mode: the adversary must not move the batch statistics. `images` are the share's.
    """
    hardened = math.ceil(len(images) * share.of * augmentation.adversarial)
    drawn = generator(seed, ADVERSARY, step)
    lengths = share.rows(step_lengths(hardened, augmentation.adversarial_step, drawn, images))
    n = len(lengths)
    if n == 0:
        return images
    training = detector.training
    detector.eval()
    stepped = adversarial_step(
        images[:n],
        target[:n],
        lambda x, y: batch_loss(detector, x, y, loss),
        lengths,
    )
    detector.train(training)
    return torch.cat([stepped, images[n:]])


@dataclass(frozen=True)
class Alignment:
    """Samples with a reference, how many of them a step takes, and the weight of their term."""

    samples: Sequence[Sample]
    weight: float
    batch: int = 12
    sound: int = 0
    """Originals a step that join the end of its batch as what they are, images without artifact:
    the term alone costs precision there. Hardening takes its share of all from the others."""

    @classmethod
    def among(
        cls,
        samples: Sequence[Sample],
        records: Sequence[Record],
        weight: float,
        batch: int = 12,
        share: float = 1.0,
        sound: int = 0,
    ) -> "Alignment | None":
        """Of the marked samples that have a reference the nearest `share`.

        None at weight 0; raises `UserError` where there is none.
        """
        if not weight:
            return None
        positions = nearest(samples, records, share)
        if not positions:
            raise UserError(
                "aligning the gradient needs marked images whose sound original is known, and none "
                "that teaches is: put the originals into references/ (same names as images/)."
            )
        return cls(Chosen(samples, positions), weight, batch, sound)

    def draw(
        self, seed: int, step: int, size: int | None, device: torch.device
    ) -> tuple[Images, Images, ArtifactMap]:
        """Broken with a little noise, sound, label."""
        broken, sound, target = reference_batch(
            self.samples, self.batch, seed=seed, step=step, size=size
        )
        g = generator(seed, JITTERED, step)
        deviation = JITTER * torch.rand(self.batch, 1, 1, 1, generator=g)
        noisy = (broken + deviation * torch.randn(broken.shape, generator=g)).clamp(0, 1)
        return noisy.to(device), sound.to(device), target.to(device)


def learn_step(
    learner: Learner[SegformerDetector],
    samples: Sequence[Sample],
    augmentation: Augmentation,
    *,
    step: int,
    seed: int,
    batch: int,
    rate: float,
    clip: float = 1.0,
    loss: str = "mse",
    size: int | None = None,
    autocast: bool = False,
    alignment: Alignment | None = None,
    quotas: Quotas | None = None,
    share: Share = WHOLE,
) -> dict[str, float]:
    """Batch, augmentation, loss, update: step `step` of the training; returns its figures."""
    detector = learner.model
    device = next(detector.parameters()).device
    images, target = training_batch(
        samples,
        batch,
        augmentation,
        seed=seed,
        step=step,
        size=size,
        device=device,
        quotas=quotas,
        share=share,
    )
    pairs = alignment.draw(seed, step, size, device) if alignment else None
    if alignment and pairs:
        shown = pairs[1][: alignment.sound]
        images = torch.cat([images, shown])
        target = torch.cat([target, torch.zeros_like(shown[:, :1])])
    images, target = share.rows(images), share.rows(target)
    measure = LOSSES[loss]
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(mix(seed, DROPOUT, step))  # stochastic depth draws from the global one
        hard = {"seed": seed, "step": step, "share": share}
        images = harden(detector, images, target, measure, augmentation, **hard)
        value = batch_loss(detector, images, target, measure, autocast)
        figures = {"loss": value.item()}
        if alignment and pairs:
            broken, sound, label = pairs
            term = misalignment(detector, share.rows(broken), share.rows(sound), share.rows(label))
            figures["misalignment"] = term.item()
            value = value + alignment.weight * term
        norm = learner.update(value, rate, clip, step, share)
    means = share.mean(list(figures.values()), device)
    return {**dict(zip(figures, means, strict=True)), "gradient_norm": norm, "learning_rate": rate}
