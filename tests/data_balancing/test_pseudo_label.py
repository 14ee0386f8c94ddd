"""Shards of unlabelled samples through the real program: what comes out, once, whatever happens."""

import io
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from concurrent.futures import as_completed

import numpy as np
import pytest
import torch
from PIL import Image

from core.errors import UserError
from core.image_files import encode_png
from core.images import from_uint8
from core.samples import Record, Sample
from core.shard_writer import ShardWriter
from core.shards import ShardStore
from data_balancing import batches, pseudo_label, teacher
from detector.data import open_labelled
from detector.segformer import SegformerConfig, SegformerDetector
from detector.storage import digest, load_detector, save_detector

SIZES = ((64, 64), (64, 96))


def sample(i: int, mask: bool = False, source: str = "pseudo") -> Sample:
    levels = np.random.default_rng(i)
    height, width = SIZES[i % 3 == 2]
    image = levels.integers(0, 256, (height, width, 3), dtype=np.uint8)
    given = np.full((height, width), 255, np.uint8) if mask else None
    record = Record(key=f"s-{i:04d}", source=source, prompt=f"prompt {i}", seed=i)
    return Sample(record.key, image, given, record)


def a_store(folder, n: int, shard_size: int = 8):
    with ShardWriter(folder, shard_size) as writer:
        for i in range(n):
            writer.write(sample(i))
        writer.write(sample(n, mask=True, source="human"))
        writer.write(sample(n + 1, source="real"))
    return folder


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    for name, seed in (("detector", 1), ("other", 2)):
        detector = SegformerDetector(SegformerConfig(variant="nano", prior=0.3), seed=seed)
        head = detector.network.decode_head.classifier.weight
        head.data = torch.randn(head.shape, generator=torch.Generator().manual_seed(seed))
        save_detector(detector, folder / name, {})
    a_store(folder / "store", 20)
    return folder


def run(world, out, **changes):
    given = {"data": (world / "store",), "detector": world / "detector", "out": out, "batch": 4}
    pseudo_label.main(pseudo_label.Config(**{**given, **changes}))
    return ShardStore(out)


def test_masks_are_the_detectors_at_its_stride(world, tmp_path):
    store, source = run(world, tmp_path / "out"), ShardStore(world / "store")
    detector = load_detector(world / "detector")
    assert len(store) == 20
    for i, one in enumerate(store):
        given = source[source.keys.index(one.key)]
        assert np.array_equal(one.image, given.image)
        said = {"source": "pseudo", "teacher": digest(world / "detector")}
        assert one.record == given.record.model_copy(update=said)
        with torch.no_grad():
            expected = torch.sigmoid(detector.logits(from_uint8(given.image[None])))[0, 0]
        assert one.mask.shape == expected.shape == tuple(s // 2 for s in given.image.shape[:2])
        assert np.abs(one.mask / 255 - expected.numpy()).max() <= 0.51 / 255
        assert i > 3 or len(np.unique(one.mask)) > 10  # the control: masks are not blank
    assert set(source.shards()) == {f"shard-{i:06d}.tar" for i in range(3)}
    assert [len(r) for r in store.shards().values()] == [8, 8, 4]  # one shard in, one shard out
    assert len(open_labelled([tmp_path / "out"])[0]) == 20  # and a detector can learn from it


def test_images_are_copied_as_they_lie(world, tmp_path):
    store, source = run(world, tmp_path / "out"), ShardStore(world / "store")
    for i, key in enumerate(store.keys):
        assert store.encoded_image(i) == source.encoded_image(source.keys.index(key))
    assert store.encoded_image(0) == encode_png(store[0].image)


def test_a_jpeg_stays_one(world, tmp_path):
    source = ShardStore(world / "store")
    with ShardWriter(tmp_path / "store") as writer:
        for i in range(3):
            buffer = io.BytesIO()
            Image.fromarray(source[i].image).save(buffer, format="JPEG")
            record = source.record(i).model_dump_json().encode()
            writer.write_encoded(source.keys[i], {"jpg": buffer.getvalue(), "json": record})
    store = run(world, tmp_path / "out", data=(tmp_path / "store",))
    given = ShardStore(tmp_path / "store")
    assert len(store) == 3
    for i, key in enumerate(store.keys):
        at = given.keys.index(key)
        assert store.image_kind(i) == "jpg" and store.encoded_image(i) == given.encoded_image(at)
        assert np.array_equal(store[i].image, given[at].image) and store[i].mask is not None


def test_again_computes_nothing(world, tmp_path, monkeypatch, capsys):
    run(world, tmp_path / "out")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*.tar")}
    monkeypatch.setattr(teacher, "opened", lambda given: pytest.fail("the detector was opened"))
    run(world, tmp_path / "out")
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*.tar")}
    assert "0 labelled, 20 were there already" in capsys.readouterr().out


def test_several_workers_write_the_same(world, tmp_path):
    run(world, tmp_path / "one")
    run(world, tmp_path / "two", workers=2)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


@pytest.mark.slow
def test_called_without_a_guard_it_is_said_and_ends(world, tmp_path):
    """What starts processes starts the script again, that called it: as a person would write."""
    own = {"data": (world / "store",), "detector": world / "detector", "out": tmp_path / "out"}
    settings = pseudo_label.Config(**own, workers=2).model_dump_json()
    script = f"""
from data_balancing import pseudo_label
from core.errors import UserError
try:
    pseudo_label.main(pseudo_label.Config.model_validate_json({settings!r}))
except UserError as error:
    print(error)
"""
    (tmp_path / "script.py").write_text(script)
    command = [sys.executable, str(tmp_path / "script.py")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0 and "__main__" in done.stdout.splitlines()[-1], done.stderr


@pytest.mark.slow
def test_stopped_its_workers_end_and_the_same_call_goes_on(world, tmp_path, monkeypatch):
    seen = []

    def interrupted(pool):
        for one in as_completed(pool):
            yield one
            seen.append(len(multiprocessing.active_children()))
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(pseudo_label, "as_completed", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run(world, tmp_path / "out", workers=2)
    for worker in multiprocessing.active_children():
        worker.join(20)
    assert seen == [2] and not multiprocessing.active_children()
    assert contents(run(world, tmp_path / "out").folder) == contents(
        run(world, tmp_path / "one").folder
    )


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.glob("*.tar")}


def test_one_store_has_one_teacher(world, tmp_path):
    run(world, tmp_path / "out")
    with pytest.raises(UserError, match="another detector"):
        run(world, tmp_path / "out", detector=world / "other")
    with pytest.raises(UserError, match="name another --out"):
        run(world, world / "store")


def test_a_second_store_needs_an_out_of_its_own(world, tmp_path):
    run(world, tmp_path / "out")
    other = tmp_path / "other"
    with ShardWriter(other, 8) as writer:
        writer.write(sample(100))
    with pytest.raises(UserError, match="another store that has a shard-000000.tar"):
        run(world, tmp_path / "out", data=(other,))
    with pytest.raises(UserError, match="shards of one name"):
        run(world, tmp_path / "both", data=(other, world / "store"))


def test_a_store_that_grew_is_taken_up(world, tmp_path):
    store = tmp_path / "store"
    for n in (1, 2):
        with ShardWriter(store, 8) as writer:
            writer.write(sample(n))
        assert len(run(world, tmp_path / "out", data=(store,))) == n


def test_a_damaged_note_is_one_sentence(world, tmp_path):
    run(world, tmp_path / "out")
    (tmp_path / "out/teacher.json").write_text("{")
    with pytest.raises(UserError, match="is damaged"):
        run(world, tmp_path / "out")


def test_a_changed_detector_is_refused(world, tmp_path):
    wrong = teacher.Teacher(world / "detector", digest(world / "other"), 4, "cpu", False)
    with pytest.raises(UserError, match="another detector by now"):
        teacher.label_shard(world / "store", "shard-000000.tar", tmp_path, wrong)
    assert not list(tmp_path.glob("*.tar"))


def test_batches_are_of_one_size_and_few_wait():
    shapes = [SIZES[random.Random(i).random() < 0.3] for i in range(200)]
    images = [
        batches.Decoded(i, "png", b"", np.zeros((*s, 3), np.uint8)) for i, s in enumerate(shapes)
    ]
    taken = []

    def given():
        for one in images:
            taken.append(one)
            yield one

    seen = []
    for batch in batches.batches(given(), 4):
        assert len({one.image.shape for one in batch}) == 1 and len(batch) <= 4
        seen += [one.position for one in batch]
        assert len(taken) - len(seen) < batches.AHEAD * 4
    assert sorted(seen) == list(range(200))


def in_a_child(world, out, wait: float | None = None) -> int:
    """The program in a forked process, killed after some seconds; its exit code."""
    child = os.fork()
    if child == 0:
        try:
            run(world, out, data=(world / "many",), batch=2)
            os._exit(0)
        finally:
            os._exit(1)
    if wait is not None:
        time.sleep(wait)
        os.kill(child, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def check_kills(world, tmp_path, kills: int):
    if not (world / "many").exists():
        a_store(world / "many", 60, shard_size=4)
    begun = time.monotonic()
    assert in_a_child(world, tmp_path / "plain") == 0
    seconds, expected = time.monotonic() - begun, contents(tmp_path / "plain")
    seed = int.from_bytes(os.urandom(3))
    draw, killed, outs = random.Random(seed), 0, 0
    while killed < kills:
        out = tmp_path / f"out-{outs}"
        while in_a_child(world, out, draw.uniform(0, 0.7 * seconds)) == -signal.SIGKILL:
            killed += 1
        outs += 1
        assert outs < 5 + kills, f"seed {seed}: it ends before it is killed"
        store = ShardStore(out)
        assert sorted(store.keys) == [f"s-{i:04d}" for i in range(60)], f"seed {seed}"
        assert contents(out) == expected, f"seed {seed}"


def test_killed_at_random_moments_every_sample_is_there_once(world, tmp_path):
    check_kills(world, tmp_path, 5)


@pytest.mark.trial
def test_killed_a_hundred_times_every_sample_is_there_once(world, tmp_path):
    check_kills(world, tmp_path, 100)


def test_what_people_label_is_left_out(world, tmp_path):
    keys = tmp_path / "keys.txt"
    keys.write_text("s-0003\ns-0007\n")
    plain = run(world, tmp_path / "plain")
    store = run(world, tmp_path / "out", leave_out=keys)
    assert set(plain.keys) - set(store.keys) == {"s-0003", "s-0007"}
    assert run(world, tmp_path / "out", leave_out=keys).keys == store.keys
    with pytest.raises(UserError, match="another --leave-out"):
        run(world, tmp_path / "out")
    keys.write_text("s-9\n")
    with pytest.raises(UserError, match="not in the store"):
        run(world, tmp_path / "new", leave_out=keys)
    assert not (tmp_path / "new").exists()
