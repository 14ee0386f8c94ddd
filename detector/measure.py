"""A detector and labelled samples in, figures over all of them and by group out."""

import time
from collections.abc import Sequence

import torch
from torch import Tensor

from core.contracts import ArtifactMap, Detector, Images
from core.errors import UserError
from core.samples import Record, Sample
from detector.data import to_tensors
from detector.metrics import all_metrics


def device(name: str) -> torch.device:
    """A torch device by name; `auto` is the GPU where there is one. Raises `UserError`."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    missing = UserError(f"there is no device {name!r} here; use auto, cpu or cuda.")
    try:
        found = torch.device(name)
    except RuntimeError as error:
        raise missing from error
    if found.type == "cuda" and (found.index or 0) >= torch.cuda.device_count():
        raise missing
    return found


def clock(place: torch.device) -> float:
    """CPU seconds of this process; where a GPU works, seconds once it has nothing left to do."""
    if place.type == "cpu":
        return time.process_time()
    if place.type == "cuda":
        torch.cuda.synchronize(place)
    return time.perf_counter()


@torch.no_grad()
def predict(detector: Detector, images: Images, batch: int) -> ArtifactMap:
    """Maps of any number of images, `batch` at a time, on the detector's device; on the CPU."""
    place = _device_of(detector)
    maps = [detector(images[i : i + batch].to(place)).cpu() for i in range(0, len(images), batch)]
    return torch.cat(maps) if maps else images.new_zeros(0, 1, *images.shape[-2:])


def predict_samples(
    detector: Detector, samples: Sequence[Sample], batch: int, size: int | None = None
) -> tuple[ArtifactMap, ArtifactMap]:
    """Maps and labels of labelled samples; only one batch of images is held at a time."""
    maps, target = [], []
    for start in range(0, len(samples), batch):
        chosen = [samples[i] for i in range(start, min(start + batch, len(samples)))]
        images, labels = to_tensors(chosen, size)
        maps.append(predict(detector, images, batch))
        target.append(labels)
    shapes = {tuple(labels.shape[1:]) for labels in target}
    if len(shapes) > 1:
        raise UserError(f"the images have {len(shapes)} sizes; give one with --size.")
    return torch.cat(maps), torch.cat(target)


def by_group(
    prediction: ArtifactMap, target: ArtifactMap, records: Sequence[Record], threshold: float
) -> dict[str, dict[str, dict[str, float]]]:
    """`overall`, and by `source`, `category` and `generator`: name -> figures."""
    groups = {"overall": {"all": all_metrics(prediction, target, threshold)}}
    for kind in ("source", "category", "generator"):
        names = sorted({getattr(record, kind) for record in records})
        groups[kind] = {
            name or "(none)": all_metrics(prediction[rows], target[rows], threshold)
            for name in names
            for rows in [_rows(records, kind, name)]
        }
    return groups


def _rows(records: Sequence[Record], kind: str, name: str) -> Tensor:
    return torch.tensor([i for i, r in enumerate(records) if getattr(r, kind) == name])


def _device_of(detector: Detector) -> torch.device:
    if isinstance(detector, torch.nn.Module):
        return next(detector.parameters()).device
    return torch.device("cpu")
