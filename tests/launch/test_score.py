"""Images to /v1/score: the detector's own answer; together where many come; refusals before it."""

import base64
import io
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image, ImageFile

from core.errors import UserError
from core.image_files import encode_png
from core.images import from_uint8, to_uint8
from detector.flaw_map import Highlighter, HighlighterConfig
from detector.measure import predict
from detector.segformer import SegformerConfig, SegformerDetector, freeze
from detector.storage import (
    load_detector,
    open_detector,
    save_detector,
    save_ensemble,
    save_highlighter,
)
from launch.service import scoring
from launch.service.checker import Strange, Unanswered
from launch.service.scoring import Scoring
from launch.service.states import Event
from tests.launch.house import NAMES, bearer, house
from tests.launch.served import until
from tests.launch.test_store import job as row_of


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    config = SegformerConfig(variant="nano", prior=0.3)
    save_detector(SegformerDetector(config, seed=1), folder / "secret-place", {})
    highlighter = Highlighter(HighlighterConfig(variant="test_resnet", hidden=8), seed=1)
    save_highlighter(highlighter, folder / "secret-highlighter", {})
    both = [open_detector(folder / name) for name in ("secret-place", "secret-highlighter")]
    save_ensemble(both, "mean", folder / "secret-both", {})
    (folder / "secret-empty").mkdir()
    return folder


@pytest.fixture(scope="module")
def real(base, tmp_path_factory):
    """With a child that really scores."""
    names = {"first": "place", "empty": "empty", "highlighter": "highlighter", "both": "both"}
    models = {name: base / f"secret-{folder}" for name, folder in names.items()}
    root = tmp_path_factory.mktemp("real") / "root"
    with house(root, open_to=NAMES, models=models) as (service, client):
        yield client
        service.scoring.close()


def picture(seed=0, height=64, width=96):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def post(client, content, headers=None, name="a.png", **fields):
    fields = {"model": "first", **fields}
    return client.post("/v1/score", files={"file": (name, content)}, data=fields, headers=headers)


def test_the_answer_is_the_detectors(real, base):
    image = picture()
    map = predict(freeze(load_detector(base / "secret-place")), from_uint8(image[None]), 1)[0]
    levels = to_uint8(map.expand(3, -1, -1)[None])[0][..., 0]
    threshold = float(map.median())
    answer = post(real, encode_png(image), threshold=str(threshold))
    assert answer.status_code == 200, answer.text
    found = answer.json()
    assert (found["object"], found["model"], found["verdict"]) == ("score", "first", "artifact")
    assert found["max"] == pytest.approx(map.max().item(), abs=1e-6)
    assert found["mean"] == pytest.approx(map.mean().item(), abs=1e-6)
    assert found["area"] == pytest.approx(0.5, abs=0.01)
    assert (found["width"], found["height"]) == (96, 64)
    drawn = np.array(Image.open(io.BytesIO(base64.b64decode(found["map"]))))
    assert drawn.shape == (64, 96) and np.abs(drawn.astype(int) - levels.astype(int)).max() <= 1
    plain = post(real, encode_png(image), {"accept": "image/png"}, threshold=str(threshold))
    assert plain.headers["content-type"] == "image/png"
    assert plain.content == base64.b64decode(found["map"])
    assert plain.headers["x-diffdoctor-verdict"] == "artifact"
    assert float(plain.headers["x-diffdoctor-max"]) == found["max"]


@pytest.mark.parametrize("model", ["highlighter", "both"])
def test_detectors_of_every_kind_answer(real, base, model):
    image = picture(3)
    detector = freeze(open_detector(base / f"secret-{model}"))
    map = predict(detector, from_uint8(image[None]), 1)[0]
    answer = post(real, encode_png(image), model=model)
    assert answer.status_code == 200, answer.text
    found = answer.json()
    assert found["max"] == pytest.approx(map.max().item(), abs=1e-5)
    assert found["mean"] == pytest.approx(map.mean().item(), abs=1e-5)
    other = post(real, encode_png(image)).json()
    assert abs(other["mean"] - found["mean"]) > 1e-3  # control: not the SegFormer's answer


def test_images_of_many_requests_come_back_to_whom_they_belong(real):
    sizes = [(64, 64), (64, 96), (96, 64)]
    images = [encode_png(picture(i, *sizes[i % 3])) for i in range(9)]
    alone = [post(real, image).json() for image in images]
    with ThreadPoolExecutor(9) as pool:
        together = list(pool.map(lambda image: post(real, image).json(), images))
    for one, other in zip(alone, together, strict=True):
        assert (one["width"], one["height"]) == (other["width"], other["height"])
        assert one["max"] == pytest.approx(other["max"], abs=1e-5)
    assert len({one["max"] for one in alone}) == 9


def bomb(width=3000, height=3000):
    """9 million pixels in a few kilobytes."""
    stream = io.BytesIO()
    Image.new("1", (width, height)).save(stream, "PNG")
    return stream.getvalue()


def gif():
    stream = io.BytesIO()
    Image.fromarray(picture()).save(stream, "GIF")
    return stream.getvalue()


@pytest.mark.parametrize(
    ("content", "fields", "status", "said"),
    [
        (b"", {}, 400, "none of PNG"),
        (b"<svg/>", {}, 400, "none of PNG"),
        (gif(), {}, 400, "none of PNG"),
        (encode_png(picture())[:200], {}, 400, "damaged"),
        (bomb(), {}, 400, "more than 4194304"),
        (bomb(12000, 12000), {}, 400, "pixels"),
        (encode_png(picture()), {"model": "none"}, 404, "there is no model"),
        (encode_png(picture()), {"model": "../first"}, 404, "there is no model"),
        (encode_png(picture()), {"model": "empty"}, 400, "is no detector"),
        (encode_png(picture()), {"threshold": "nan"}, 400, "threshold"),
        (encode_png(picture()), {"threshold": "1"}, 400, "threshold"),
        (encode_png(picture()), {"path": "/etc/passwd"}, 400, ""),
        (b"x" * (17 << 20), {}, 413, "bytes"),
    ],
)
def test_what_is_no_image_for_a_detector_is_refused(real, content, fields, status, said):
    answer = post(real, content, **fields)
    assert answer.status_code == status, answer.text
    assert said in answer.json()["error"]["message"] and "secret" not in answer.text


def test_a_form_without_an_image(real):
    no_file = real.post("/v1/score", data={"model": "first"})
    words = real.post("/v1/score", data={"model": "first", "file": "words"})
    no_form = real.post("/v1/score", content=b"{}", headers={"content-type": "application/json"})
    two = real.post("/v1/score", files=[("file", ("a", b"x")), ("file", ("b", b"x"))])
    assert [one.status_code for one in (no_file, words, no_form, two)] == [400, 400, 404, 400]


def test_pixels_are_counted_before_they_are_decoded(monkeypatch):
    loads, load = [], ImageFile.ImageFile.load

    def counting(self):
        loads.append(self.size)
        return load(self)

    monkeypatch.setattr(ImageFile.ImageFile, "load", counting)
    with pytest.raises(UserError, match="more than"):
        scoring._picture(bomb())
    assert loads == []
    monkeypatch.setattr(scoring, "PIXELS", 1 << 30)  # control
    scoring._picture(bomb(300, 300))
    assert loads != []


def test_a_detector_that_was_trained_here_scores(tmp_path):
    figures = dict.fromkeys(("max", "mean", "area"), 0.0) | {"verdict": "sound", "map": ""}
    asked = []

    class Recording:
        def ask(self, what, model, images, thresholds):
            asked.append(model)
            return [{**figures, "width": 1, "height": 1} for _ in images]

        def close(self):
            pass

    with house(tmp_path / "root") as (service, client):
        service.scoring = Scoring(Recording())
        mine, other = bearer(service), bearer(service, "bob")
        values = {"method": "artifact_detector", "total": 1, "uses": []}
        job_id = service.jobs.create_job(row_of(owner="ada", **values))[0]["id"]
        early = post(client, b"x", mine, model=job_id)
        assert early.status_code == 400 and "name one that" in early.json()["error"]["message"]
        folder = service.supervisor.folder(job_id)
        folder.mkdir(parents=True)
        service.jobs.change(job_id, Event.VALIDATED)
        service.jobs.begin(job_id, 1, 1, "local")
        service.jobs.change(job_id, Event.FINISHED, 1)
        names = [one["id"] for one in client.get("/v1/models", headers=mine).json()["data"]]
        assert len(names) == 1 and names[0].startswith("ft:artifact_detector:")
        for name in (names[0], job_id):
            found = post(client, b"x", mine, model=name)
            assert found.status_code == 200 and found.json()["model"] == name, found.text
            assert post(client, b"x", other, model=name).status_code == 404
        assert asked == [str(folder)] * 2


# The line


class Child:
    """Answers when it is let; remembers how many came at once."""

    def __init__(self):
        self.asked, self.go, self.poison = [], threading.Event(), None

    def ask(self, what, model, images, thresholds):
        self.asked.append((model, len(images)))
        assert self.go.wait(20)
        if self.poison in images:
            raise self.fault("it has died")
        return [{"max": image} for image in images]

    def close(self):
        pass


@pytest.fixture
def child():
    return Child()


def text(content):
    return base64.b64encode(content).decode()


def test_what_comes_meanwhile_goes_together_and_by_model(child, tmp_path):
    line = Scoring(child, batch=3)
    answers = [line.ask(tmp_path, b"0", 0.5)]
    until(lambda: child.asked)
    for i in range(1, 6):
        answers.append(line.ask(tmp_path, str(i).encode(), 0.5))
    other = line.ask(tmp_path / "b", b"x", 0.5)
    child.go.set()
    found = [one.result(10)["max"] for one in answers]
    assert found == [text(str(i).encode()) for i in range(6)] and other.result(10)
    sizes = [number for _, number in child.asked]
    assert sizes == [1, 3, 2, 1]


@pytest.mark.parametrize("fault", [Unanswered, Strange])
def test_an_image_that_breaks_the_child_breaks_nobody_elses(child, tmp_path, fault):
    line, child.poison, child.fault = Scoring(child), text(b"evil"), fault
    first = line.ask(tmp_path, b"0", 0.5)
    until(lambda: child.asked)
    evil, good = line.ask(tmp_path, b"evil", 0.5), line.ask(tmp_path, b"good", 0.5)
    gone = line.ask(tmp_path, b"gone", 0.5)
    gone.cancel()
    child.go.set()
    assert first.result(10) and good.result(10)["max"] == text(b"good")
    with pytest.raises(fault):
        evil.result(10)
    assert [number for _, number in child.asked] == [1, 2, 1, 1]


def test_a_child_that_answers_nonsense_leaves_nobody_waiting(child, tmp_path):
    line = Scoring(child)
    child.go.set()
    child.ask = lambda what, **values: [{}, {}, {}]
    with pytest.raises(Unanswered):
        line.ask(tmp_path, b"0", 0.5).result(10)
    child.ask = lambda what, **values: 1 / 0
    with pytest.raises(ZeroDivisionError):
        line.ask(tmp_path, b"0", 0.5).result(10)


FIGURES = {"verdict": "sound", "max": 0.1, "mean": 0.1, "area": 0.0, "width": 1, "height": 1}


def test_a_full_line_says_when_to_come_again(child, tmp_path):
    with house(tmp_path / "root", open_to=NAMES, models={"first": tmp_path}) as (service, client):
        answers = [{**FIGURES, "map": ""}]
        child.answer = child.ask

        def ask(what, **values):
            child.answer(what, **values)
            return answers * len(values["images"])

        child.ask = ask
        service.scoring = Scoring(child, room=2)
        with ThreadPoolExecutor(2) as pool:
            waiting = [pool.submit(post, client, b"x") for _ in range(2)]
            until(lambda: service.scoring._taken == 2)
            refused = post(client, b"x")
            assert refused.status_code == 429 and refused.headers["retry-after"] == "2"
            assert refused.json()["error"]["code"] == "busy"
            child.go.set()
            assert [one.result().status_code for one in waiting] == [200, 200]
        assert service.scoring._taken == 0
        assert post(client, b"x").status_code == 200  # control
