"""Images of many requests in; what a detector says of each out, some at a time.

A child process holds torch and the detector (`checker.Checker`): started when there is something
to score, gone when there has been nothing for a while. While it computes, others wait in line and
go in together next; where the line is full, whoever comes is told to come again.
"""

import base64
import io
import sys
import threading
from collections import OrderedDict
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

from core.errors import UserError
from launch.service.checker import Strange, Unanswered, serve_questions

ROOM = 16
"""Requests that may be under way at once; each holds an image of at most `BYTES`."""
BATCH = 8
BYTES = 16 << 20
PIXELS = 4 << 20
"""Of an image: on a CPU a larger one takes too long for an answer to a request."""
KEPT = 2
"""Detectors that the child holds."""


class Full(Exception):
    """The line is full: a little later there is room."""


class Waiting(NamedTuple):
    """One image in line."""

    model: Path
    content: bytes
    threshold: float
    answer: "Future[dict[str, Any]]"


@runtime_checkable
class Child(Protocol):
    """What holds the detectors: a `Checker` whose child is this module."""

    def ask(self, what: str, **values: Any) -> Any: ...

    def close(self) -> None: ...


class Scoring:
    """The line; safe to use from many threads."""

    def __init__(self, child: Child, room: int = ROOM, batch: int = BATCH):
        self._child, self._room, self._batch = child, room, batch
        self._line: list[Waiting] = []
        self._taken = 0
        self._one = threading.Lock()
        self._working = False

    @contextmanager
    def place(self) -> Iterator[None]:
        """One request, from before its body is read; raises `Full`."""
        with self._one:
            if self._taken >= self._room:
                raise Full
            self._taken += 1
        try:
            yield
        finally:
            with self._one:
                self._taken -= 1

    def ask(self, model: Path, content: bytes, threshold: float) -> "Future[dict[str, Any]]":
        """What will come; as an exception `UserError`, of the image or model, or a `Checker`'s."""
        one = Waiting(model, content, threshold, Future())
        with self._one:
            self._line.append(one)
            if not self._working:
                self._working = True
                threading.Thread(target=self._work, name="scoring", daemon=True).start()
        return one.answer

    def close(self) -> None:
        self._child.close()

    def _work(self) -> None:
        """Until nobody is in line."""
        while True:
            with self._one:
                if not self._line:
                    self._working = False
                    return
                model = self._line[0].model
                chosen = [i for i, one in enumerate(self._line) if one.model == model]
                taken = [self._line[i] for i in chosen[: self._batch]]
                left = set(range(len(self._line))) - set(chosen[: self._batch])
                self._line = [self._line[i] for i in sorted(left)]
            # those whose caller has gone are passed over
            self._answer(model, [one for one in taken if one.answer.set_running_or_notify_cancel()])

    def _answer(self, model: Path, taken: list[Waiting]) -> None:
        """Of every image, whatever happens."""
        try:
            found = self._found(model, taken) if taken else []
        except (Unanswered, Strange) as error:
            if len(taken) > 1:  # an image that breaks the child breaks nobody else's
                for one in taken:
                    self._answer(model, [one])
            else:
                taken[0].answer.set_exception(error)
        except Exception as error:
            for one in taken:
                one.answer.set_exception(error)
        else:
            for one, said in zip(taken, found, strict=True):
                if "error" in said:
                    one.answer.set_exception(UserError(said["error"]))
                else:
                    one.answer.set_result(said)

    def _found(self, model: Path, taken: list[Waiting]) -> list[dict[str, Any]]:
        images = [base64.b64encode(one.content).decode() for one in taken]
        thresholds = [one.threshold for one in taken]
        found = self._child.ask("score", model=str(model), images=images, thresholds=thresholds)
        if len(found) != len(taken):
            raise Unanswered("the child answered something else")
        return found


# In the child

_detectors: "OrderedDict[str, Any]" = OrderedDict()


def score(model: str, images: list[str], thresholds: list[float]) -> list[dict[str, Any]]:
    """Figures and map (PNG, base64) of each image, or what is wrong with it."""
    detector = _detector(model)
    found: list[dict[str, Any]] = [{} for _ in images]
    sizes: dict[tuple[int, ...], list[tuple[int, Any]]] = {}
    for i, image in enumerate(images):
        try:
            picture = _picture(base64.b64decode(image))
            sizes.setdefault(tuple(picture.shape), []).append((i, picture))
        except UserError as error:
            found[i] = {"error": str(error)}
    for same in sizes.values():
        maps = _maps(detector, [picture for _, picture in same])
        for (i, _), map in zip(same, maps, strict=True):
            found[i] = _figures(map, thresholds[i])
    return found


def _detector(model: str) -> Any:
    from detector.segformer import freeze
    from detector.storage import open_detector

    if model not in _detectors:
        try:
            _detectors[model] = freeze(open_detector(Path(model)))
        except UserError as error:
            # the operator's folders are nobody's business
            print(f"error: {error}", file=sys.stderr)
            raise UserError("that model is no detector: name another.") from error
    _detectors.move_to_end(model)
    while len(_detectors) > KEPT:
        _detectors.popitem(last=False)
    return _detectors[model]


def _picture(content: bytes) -> Any:
    """Its size is known from the header before anything is decoded."""
    from PIL import Image, UnidentifiedImageError

    from core.image_files import FORMATS, decode_image, flatten
    from core.images import from_uint8

    try:
        width, height = Image.open(io.BytesIO(content), formats=list(FORMATS)).size
    except (UnidentifiedImageError, Image.DecompressionBombError):
        width = height = 0  # `decode_image` says it better
    except (OSError, ValueError, SyntaxError) as error:
        raise UserError(f"the image is damaged ({error}); replace it.") from error
    if width * height > PIXELS:
        raise UserError(
            f"the image has {width}x{height} pixels, more than {PIXELS}; shrink it, or use "
            "`diffdoctor detector diagnose`."
        )
    return from_uint8(flatten(decode_image(content, "the image"))[None])[0]


def _maps(detector: Any, pictures: list[Any]) -> Any:
    """As many at a time as have the pixels of one largest image."""
    import torch

    from detector.measure import predict

    height, width = pictures[0].shape[-2:]
    return predict(detector, torch.stack(pictures), max(1, PIXELS // (height * width)))


def _figures(map: Any, threshold: float) -> dict[str, Any]:
    from core.image_files import encode_png
    from core.images import to_uint8

    peak = map.max().item()
    levels = to_uint8(map.expand(3, -1, -1)[None])[0][..., 0]
    return {
        "verdict": "artifact" if peak >= threshold else "sound",
        "max": peak,
        "mean": map.mean().item(),
        "area": (map >= threshold).float().mean().item(),
        "width": map.shape[-1],
        "height": map.shape[-2],
        "map": base64.b64encode(encode_png(levels)).decode(),
    }


if __name__ == "__main__":
    serve_questions({"score": score}, float(sys.argv[1]))
