"""Shards: any webdataset reader streams them, nothing is repeated, damaged or out of order."""

import io
import os
import random
import shutil
import subprocess
import sys
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from core import storage
from core.errors import UserError
from core.order import batch_indices, epoch_order
from core.samples import Record, Sample, safe_key
from core.shard_index import mend_indices
from core.shard_writer import ShardWriter, encoded
from core.shards import ShardStore
from tests.core.faults import failing_at, killed_at, operations, tree


def sample(i, size=(6, 9)):
    draw = np.random.default_rng(i)
    image = draw.integers(0, 256, (*size, 3), dtype=np.uint8)
    mask = draw.integers(0, 256, (3, 4), dtype=np.uint8) if i % 3 else None
    reference = draw.integers(0, 256, (*size, 3), dtype=np.uint8) if i % 3 == 1 else None
    said = {"prompt": f"ä hand {i}", "seed": i, "licence": "CC0-1.0", "referenced": i % 3 == 1}
    return Sample(f"s-{i}", image, mask, Record(key=f"s-{i}", source="hard", **said), reference)


SAMPLES = [sample(i) for i in range(7)]


def fill(folder, samples=SAMPLES, shard_size=3):
    with ShardWriter(folder, shard_size) as writer:
        return [writer.write(sample) for sample in samples]


def assert_same(one, other):
    assert one.key == other.key and one.record == other.record
    assert np.array_equal(one.image, other.image)
    assert (one.mask is None) == (other.mask is None)
    assert one.mask is None or np.array_equal(one.mask, other.mask)


@pytest.fixture
def folder(tmp_path):
    fill(tmp_path / "set")
    return tmp_path / "set"


def test_samples_come_back_exactly(folder):
    store = ShardStore(folder)
    assert len(store) == 7 and len(list(folder.glob("*.tar"))) == 3
    for expected, found in zip(SAMPLES, store, strict=True):
        assert_same(expected, found)
    assert list(store.records()) == [sample.record for sample in SAMPLES]
    assert_same(store[-1], SAMPLES[-1])
    store[0].image[0, 0, 0] = 0  # writable, as torch.from_numpy wants it


def test_webdataset_streams_them(folder):
    wds = pytest.importorskip("webdataset")
    urls = sorted(map(str, folder.glob("*.tar")))
    seen = list(wds.WebDataset(urls, shardshuffle=False).decode("rgb8"))
    assert [found["__key__"] for found in seen] == [sample.key for sample in SAMPLES]
    for expected, found in zip(SAMPLES, seen, strict=True):
        assert np.array_equal(found["png"], expected.image)
        assert ("mask.png" in found) == (expected.mask is not None)
        if expected.mask is not None:
            assert np.array_equal(found["mask.png"][..., 0], expected.mask)
        assert Record(**found["json"]) == expected.record


def jpeg(array, **options):
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, format="JPEG", **options)
    return buffer.getvalue()


def fill_with_jpegs(folder, kind="jpg", change=lambda content: content):
    """The same samples as somebody else would write them; no reference."""
    with ShardWriter(folder, 3) as writer:
        for one in SAMPLES:
            record = one.record.model_copy(update={"referenced": False})
            members = encoded(replace(one, record=record, reference=None))
            del members["png"]
            writer.write_encoded(one.key, {kind: change(jpeg(one.image)), **members})
    return ShardStore(folder)


@pytest.mark.parametrize("kind", ["jpg", "jpeg"])
def test_images_may_be_jpegs(tmp_path, kind):
    store = fill_with_jpegs(tmp_path, kind)
    assert len(store) == len(SAMPLES)
    for i, (expected, found) in enumerate(zip(SAMPLES, store, strict=True)):
        whole = Image.open(io.BytesIO(jpeg(expected.image)))
        assert np.array_equal(found.image, np.asarray(whole.convert("RGB")))
        assert (found.mask is None) == (expected.mask is None)
        assert found.mask is None or np.array_equal(found.mask, expected.mask)
        assert (store.image_kind(i), store.encoded_image(i)) == (kind, jpeg(expected.image))
        found.image[0, 0, 0] = 0  # writable


@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_a_jpeg_of_other_channels_is_rgb(tmp_path, mode):
    def other(content):
        buffer = io.BytesIO()
        Image.open(io.BytesIO(content)).convert(mode).save(buffer, format="JPEG")
        return buffer.getvalue()

    for one in fill_with_jpegs(tmp_path, change=other):
        assert one.image.shape == (6, 9, 3) and one.image.dtype == np.uint8


def test_a_jpeg_that_was_damaged_before_it_was_written_is_named(tmp_path):
    cut = fill_with_jpegs(tmp_path / "cut", change=lambda content: content[:-200])
    with pytest.raises(UserError, match=r"shard-000000.tar:s-0.jpg is (damaged|none of)"):
        cut[0]
    other = fill_with_jpegs(tmp_path / "other", change=lambda content: b"not a picture")
    with pytest.raises(UserError, match=r"s-4.jpg is none of PNG, JPEG, WEBP"):
        other[4]
    assert other.record(4).prompt == "ä hand 4"


def test_a_flipped_bit_of_a_jpeg_is_seen(tmp_path):
    store = fill_with_jpegs(tmp_path)
    path = tmp_path / "shard-000000.tar"
    content = bytearray(path.read_bytes())
    content[content.index(store.encoded_image(0)) + 50] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"s-0.jpg is damaged \(another sha256"):
        store[0]


def test_a_sample_without_an_image_and_a_mask_in_colours_are_refused(tmp_path):
    with ShardWriter(tmp_path) as writer:
        members = encoded(SAMPLES[0])
        writer.write_encoded("s-0", {"json": members["json"]})
        writer.write_encoded("s-3", {**encoded(SAMPLES[3]), "mask.png": members["png"]})
    store = ShardStore(tmp_path)
    for read in (store.__getitem__, store.encoded_image, store.image_kind):
        with pytest.raises(UserError, match="has no image of s-0; write it again"):
            read(0)
    with pytest.raises(UserError, match="s-3.mask.png is a picture in colours"):
        store[1]


def test_running_again_repeats_nothing(folder):
    before = tree(folder)
    assert fill(folder) == [False] * 7
    assert tree(folder) == before
    assert fill(folder, [*SAMPLES, sample(7)])[-1]
    assert [found.key for found in ShardStore(folder)] == [f"s-{i}" for i in range(8)]
    with ShardWriter(folder) as writer:
        assert "s-7" in writer and "s-8" not in writer


def test_the_same_samples_make_the_same_bytes(folder, tmp_path):
    fill(tmp_path / "again")
    assert tree(tmp_path / "again") == tree(folder)


def test_an_exception_drops_the_shard_in_progress(tmp_path):
    with pytest.raises(RuntimeError), ShardWriter(tmp_path, 3) as writer:
        for sample in SAMPLES[:5]:
            writer.write(sample)
        raise RuntimeError
    assert len(ShardStore(tmp_path)) == 3 and len(list(tmp_path.glob("*.tar"))) == 1
    assert not list(tmp_path.glob(".*.tmp"))
    fill(tmp_path)
    assert len(ShardStore(tmp_path)) == 7


def test_what_a_stopped_writer_left_is_swept(tmp_path):
    manifest = ".shard.manifest.jsonl"
    for name in (".shard-000000.tar.tmp", f"{manifest}.7.tmp", f"{manifest}.7.140.tmp"):
        (tmp_path / name).write_text("as SIGKILL leaves it")
    (tmp_path / ".other-000000.tar.tmp").write_text("another writer's")
    fill(tmp_path)
    assert [path.name for path in tmp_path.glob(".*.tmp")] == [".other-000000.tar.tmp"]


def test_two_threads_write_one_file(tmp_path, monkeypatch):
    """Both have written before either renames."""
    both, rename = threading.Barrier(2), os.rename

    def renamed(old, new):
        both.wait(10)
        rename(old, new)

    monkeypatch.setattr(storage.primitives, "rename", renamed)
    with ThreadPoolExecutor(2) as pool:
        done = [pool.submit(storage.write_atomic, tmp_path / "a", b"whole") for _ in range(2)]
    assert [one.result() for one in done] == [None, None]
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_kill_before_and_after_every_storage_operation(tmp_path):
    count = len(operations(lambda: fill(tmp_path / "whole")))
    assert count > 15
    for n in range(count):
        for after in (False, True):
            folder = tmp_path / f"{n}{after}"
            assert killed_at(lambda folder=folder: fill(folder), n, after)
            if list(folder.glob("*.manifest.jsonl")):
                done = len(ShardStore(folder))
                assert done in (0, 3, 6, 7)
            fill(folder)
            assert tree(folder) == tree(tmp_path / "whole")


def test_a_full_disk_is_said_and_what_was_committed_stays(tmp_path):
    count = len(operations(lambda: fill(tmp_path / "whole")))
    for n in range(count):
        folder = tmp_path / str(n)
        with failing_at(n, 28), pytest.raises(UserError, match="disk full: .*need .* free"):
            fill(folder)
        fill(folder)
        assert tree(folder) == tree(tmp_path / "whole")


def test_one_name_has_one_writer(tmp_path):
    with ShardWriter(tmp_path) as writer:
        writer.write(SAMPLES[0])
        with pytest.raises(UserError, match="another writer"):
            ShardWriter(tmp_path)
        with ShardWriter(tmp_path, name="other") as second:
            second.write(SAMPLES[1])
    assert sorted(ShardStore(tmp_path).keys) == ["s-0", "s-1"]


def test_a_key_of_two_writers_is_refused(tmp_path):
    for name in ("a", "b"):
        with ShardWriter(tmp_path, name=name) as writer:
            writer.write(SAMPLES[0])
    with pytest.raises(UserError, match="key twice"):
        ShardStore(tmp_path)


def damaged_reads(folder, trials, seed):
    """Flip, cut or zero something in a random file; returns the damage that changed a sample."""
    wrong = []
    for trial in range(trials):
        draw = random.Random(seed * 1_000_000 + trial)
        copy = folder.parent / f"copy-{trial}"
        shutil.copytree(folder, copy)
        victim = draw.choice(sorted(path for path in copy.iterdir() if path.stat().st_size))
        content = bytearray(victim.read_bytes())
        place = draw.randrange(len(content))
        kind = draw.choice(["flip", "cut", "zero"])
        if kind == "flip":
            content[place] ^= 1 << draw.randrange(8)
        elif kind == "cut":
            del content[place:]
        else:
            content[place : place + 100] = bytes(len(content[place : place + 100]))
        victim.write_bytes(content)
        try:
            found = list(ShardStore(copy))
        except UserError:
            continue
        for one in found:  # a torn manifest may hold fewer samples, never others
            try:
                assert_same(one, SAMPLES[int(one.key[2:])])
            except AssertionError:
                wrong.append(f"{kind} {victim.name}")
    return wrong


def test_no_damaged_sample_is_served(folder):
    seed = int.from_bytes(os.urandom(3))
    assert damaged_reads(folder, 100, seed) == [], f"seed {seed}"


def test_control_without_digests_damage_is_served(folder, monkeypatch):
    import core.shards

    class Blind:
        """Every digest is equal to every other."""

        def __init__(self, content=b""):
            pass

        def hexdigest(self):
            return self

        def __eq__(self, other):
            return True

    monkeypatch.setattr(core.shards.hashlib, "sha256", Blind)
    try:
        assert damaged_reads(folder, 100, 0) != []
    except ValueError:
        pass  # damage went so deep that the index itself no longer parsed


def test_sizes_are_capped_before_reading(folder, monkeypatch):
    import core.shard_index

    monkeypatch.setattr(core.shard_index, "MAX_RECORD_BYTES", 10)
    with pytest.raises(UserError, match="more than 10"):
        ShardStore(folder).record(0)


def test_a_manifest_cannot_point_elsewhere(folder):
    manifest = folder / "shard.manifest.jsonl"
    manifest.write_text(manifest.read_text().replace("shard-000000.tar", "../shard-000000.tar"))
    with pytest.raises(UserError, match="manifest is damaged"):
        ShardStore(folder)


def test_missing_files_are_named(folder, tmp_path):
    (folder / "shard-000001.tar").unlink()
    with pytest.raises(UserError, match=r"shard-000001.tar:s-3.png"):
        ShardStore(folder)[3]
    (folder / "shard-000001.index.jsonl").unlink()
    with pytest.raises(UserError, match="shard-000001.index.jsonl"):
        ShardStore(folder)
    with pytest.raises(UserError, match="is no store"):
        ShardStore(tmp_path)
    (folder / "shard.manifest.jsonl").unlink()
    with pytest.raises(UserError, match="tars without the index.*import webdataset"):
        ShardStore(folder)


@pytest.mark.parametrize("lost", [Path.unlink, lambda path: path.write_text("{}\n")])
def test_a_lost_index_is_made_again_from_its_tar(folder, lost):
    path = folder / "shard-000001.index.jsonl"
    before = path.read_bytes()
    assert mend_indices(folder) == []  # nothing is wrong
    lost(path)
    assert mend_indices(folder) == [path.name] and path.read_bytes() == before
    lost(path)
    tar = folder / "shard-000001.tar"
    content = bytearray(tar.read_bytes())
    content[600] ^= 1  # within the first member
    tar.write_bytes(bytes(content))
    assert mend_indices(folder) == []  # a damaged tar is no source
    tar.unlink()
    assert mend_indices(folder) == []


def test_no_index_is_mended_elsewhere(folder, tmp_path):
    manifest = folder / "shard.manifest.jsonl"
    manifest.write_text(manifest.read_text().replace("shard-000001.tar", "../shard-000001.tar"))
    with pytest.raises(UserError, match="manifest is damaged"):
        mend_indices(folder)


@pytest.mark.parametrize("key", ["", "a.b", "a/b", "..", "a\\b", "ä", "a b", "x" * 81, "a\n"])
def test_keys_that_could_be_paths_are_refused_and_can_be_made_safe(key):
    pixels = np.zeros((2, 2, 3), np.uint8)
    with pytest.raises(UserError, match="safe_key"):
        Sample(key, pixels, None, Record(key=key, source="real"))
    safe = safe_key(key)
    Sample(safe, pixels, None, Record(key=safe, source="real"))
    assert safe == safe_key(key) != safe_key(key + "!")


def test_a_sample_is_checked():
    pixels = np.zeros((2, 2, 3), np.uint8)
    with pytest.raises(UserError):
        Sample("a", pixels, None, Record(key="b", source="real"))
    with pytest.raises(ValueError, match="image"):
        Sample("a", pixels.astype(float), None, Record(key="a", source="real"))
    with pytest.raises(ValueError, match="mask"):
        Sample("a", pixels, pixels, Record(key="a", source="real"))
    with pytest.raises(ValueError, match="reference"):
        Sample("a", pixels, None, Record(key="a", source="real"), pixels)
    made = Record(key="a", source="real", referenced=True)
    with pytest.raises(UserError, match="a is 3x2 pixels, its image 2x2"):
        Sample("a", pixels, None, made, np.zeros((2, 3, 3), np.uint8))


@given(st.integers(1, 300), st.integers(0, 2**40), st.integers(0, 9))
def test_an_epoch_visits_everything_once(n, seed, epoch):
    assert sorted(epoch_order(n, seed, epoch).tolist()) == list(range(n))


def test_the_order_never_changes():
    assert epoch_order(8, 0, 0).tolist() == KNOWN
    code = "from core.order import epoch_order; print(epoch_order(8, 0, 0).tolist())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(KNOWN)


KNOWN = [6, 7, 1, 2, 3, 4, 0, 5]


def test_orders_differ_by_seed_and_epoch_and_are_uniform():
    orders = {tuple(epoch_order(20, s, e)) for s in range(5) for e in range(5)}
    assert len(orders) == 25
    first = Counter(int(epoch_order(5, seed, 0)[0]) for seed in range(5000))
    assert all(abs(count - 1000) < 150 for count in first.values())  # 5 standard deviations
    pairs = Counter(tuple(epoch_order(3, seed, 0)) for seed in range(6000))
    assert len(pairs) == 6 and all(abs(count - 1000) < 150 for count in pairs.values())


@given(st.integers(1, 40), st.integers(1, 12), st.integers(0, 5))
def test_batches_are_the_stream_cut_in_pieces(n, batch, seed):
    stream = [int(i) for epoch in range(5) for i in epoch_order(n, seed, epoch)]
    for k in range(len(stream) // batch):
        assert batch_indices(n, batch, seed, k) == stream[k * batch : (k + 1) * batch]


def test_an_empty_set_has_no_batch():
    with pytest.raises(UserError):
        batch_indices(0, 4, 0, 0)


def test_the_shared_order_cannot_be_changed_by_a_caller():
    with pytest.raises(ValueError, match="read-only"):
        epoch_order(5, 0, 0)[0] = 3
