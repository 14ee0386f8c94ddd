"""Labelled samples from shards and folders: nothing lost, nothing leaked, order from numbers."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.functional import interpolate

from core.errors import UserError
from core.images import write_image
from core.samples import Record
from core.shard_writer import ShardWriter
from detector import data
from detector.augmentation import NO_AUGMENTATION, Augmentation
from detector.maps import upsample
from detector.sources import FolderSamples, open_data
from tests.detector.toy import toy_folder, toy_samples, toy_shards


def test_shards_and_folder_hold_the_same(tmp_path):
    shards, _ = data.open_labelled([toy_shards(tmp_path / "s", 9)])
    folder, records = data.open_labelled([toy_folder(tmp_path / "f", 9)])
    assert len(shards) == len(folder) == len(records) == 9  # the unlabelled one is left out
    by_key = {s.key.removeprefix("real-"): s for s in folder}
    for sample in shards:
        assert np.array_equal(sample.image, by_key[sample.key].image)
        assert np.array_equal(sample.mask, by_key[sample.key].mask)
        assert np.array_equal(sample.reference, by_key[sample.key].reference)
    assert sum(s.reference is not None for s in folder) == 3
    assert {r.source for r in records} == {"human", "real"}


def test_a_set_too_large_for_memory_is_read_on_demand(tmp_path):
    path = toy_shards(tmp_path / "s", 6)
    held, _ = data.open_labelled([path])
    read, _ = data.open_labelled([path], memory=10)
    assert isinstance(held, list) and not isinstance(read, list)
    for ours, theirs in zip(data.to_tensors(held), data.to_tensors(list(read)), strict=True):
        assert torch.equal(ours, theirs)


def test_what_is_unlabelled_in_a_store_is_passed_over(tmp_path):
    given = [replace(s, mask=None) if i % 4 == 1 else s for i, s in enumerate(toy_samples(8))]
    sources = {given[i].record.source for i in (1, 5)}
    assert "real" not in sources  # else its label would be known
    with ShardWriter(tmp_path / "s") as writer:
        for sample in given:
            writer.write(sample)
    for memory in (data.MEMORY, 10):
        samples, records = data.open_labelled([tmp_path / "s"], memory)
        assert [s.key for s in samples] == [s.key for i, s in enumerate(given) if i % 4 != 1]
        assert [record.key for record in records] == [s.key for s in samples]
    assert len(open_data([tmp_path / "s"], masked=False)[0]) == 8
    with ShardWriter(tmp_path / "bare") as writer:
        writer.write(given[1])
    with pytest.raises(UserError, match="no labelled sample"):
        data.open_labelled([tmp_path / "bare"])


@pytest.mark.parametrize(
    ("mode", "colour", "said"),
    [
        ("RGB", (255, 0, 0), "in colours"),
        ("RGBA", (255, 255, 255, 0), "transparent"),
        ("P", 1, "in colours"),
        ("RGB", (200, 201, 199), None),
        ("LA", (200, 255), None),
    ],
)
def test_a_mask_in_colours_is_refused(tmp_path, mode, colour, said):
    folder = toy_folder(tmp_path / "f", 3)
    mask = Image.new(mode, (32, 32), colour)
    if mode == "P":
        mask.putpalette([0, 0, 0, 128, 0, 0])
    mask.save(folder / "masks/toy-0001.png")
    samples = FolderSamples(folder)
    (place,) = (i for i, record in enumerate(samples.records()) if record.key == "toy-0001")
    if said is None:
        assert abs(int(samples[place].mask.max()) - 200) <= 1
        return
    with pytest.raises(UserError, match=said):
        samples[place]


def test_a_line_that_people_got_wrong_is_named(tmp_path):
    folder = toy_folder(tmp_path / "f", 3)
    (folder / "prompts.jsonl").write_text('{"file": "toy-0001.png"}\n\nnot json\n')
    with pytest.raises(UserError, match=r"prompts\.jsonl, line 3, is no JSON object"):
        FolderSamples(folder)


def test_prompts_of_a_folder_are_read(tmp_path):
    folder = toy_folder(tmp_path / "f", 3)
    line = '{"image": "images/toy-0001.png", "prompt": "a bar", "category": "bar"}\n'
    (folder / "prompts.jsonl").write_text(line)
    records = {r.key: r for r in FolderSamples(folder).records()}
    assert records["toy-0001"].prompt == "a bar" and records["toy-0001"].category == "bar"


def test_a_wrong_record_is_named(tmp_path):
    folder = toy_folder(tmp_path / "f", 3)
    (folder / "records.jsonl").write_text('{"key": "toy-0001", "source": "dream"}\n')
    with pytest.raises(UserError, match=r"toy-0001\.png.*source"):
        FolderSamples(folder).records()


def test_no_prompt_stands_on_both_sides():
    records = [sample.record for sample in toy_samples(200)]
    train, valid = data.split_by_group(records, 0.3, seed=1)
    assert sorted(train + valid) == list(range(200))
    assert not {records[i].prompt for i in train} & {records[i].prompt for i in valid}
    assert 0.15 < len(valid) / 200 < 0.45


def test_adding_samples_moves_no_other():
    records = [sample.record for sample in toy_samples(100)]
    _, few = data.split_by_group(records[:50], 0.3, seed=1)
    _, many = data.split_by_group(records, 0.3, seed=1)
    assert few == [i for i in many if i < 50]
    assert data.split_by_group(records, 0.3, seed=2)[1] != many


def test_long_prompts_are_hashed():
    record = Record(key="a", source="human", prompt="x" * 10_000)
    assert len(data.split_by_group([record], 0.5, 0)[0]) in (0, 1)


def test_small_masks_grow_to_their_image():
    sample = toy_samples(2)[1]
    small = replace(sample, mask=np.full((8, 8), 255, np.uint8))
    images, masks = data.to_tensors([small])
    assert masks.shape == (1, 1, *images.shape[-2:]) and masks.min() == 1


def test_a_detectors_mask_is_enlarged_as_the_detector_enlarges_it():
    logits = 2 * torch.randn(1, 1, 8, 8, generator=torch.Generator().manual_seed(0)) - 2
    shown = torch.sigmoid(upsample(logits, (32, 32)))
    levels = torch.sigmoid(logits).mul(255).round().byte()[0, 0].numpy()

    def read(source, size):
        sample = toy_samples(2)[1]
        record = sample.record.model_copy(update={"source": source})
        return data.to_tensors([replace(sample, mask=levels, record=record)], size)[1]

    for size in (None, 48, 24, 8, 4):
        to = (size or 32, size or 32)
        wanted = interpolate(shown, to, mode="bilinear", antialias=True)
        assert (read("pseudo", size) - wanted).abs().mean() < 0.002
        assert (read("human", size) - wanted).abs().mean() > 0.008  # control
    record = toy_samples(2)[1].record.model_copy(update={"source": "pseudo"})
    pseudo = replace(toy_samples(2)[1], mask=levels, record=record)
    assert abs(data.mean_artifact([pseudo]) - shown.mean().item()) < 0.002
    nothing = replace(pseudo, mask=np.zeros((8, 8), np.uint8))
    assert data.to_tensors([nothing])[1].max() == 0


def test_sizes_must_agree_or_be_given():
    mixed = [toy_samples(1, size=32)[0], toy_samples(1, size=48)[0]]
    with pytest.raises(UserError, match="--size"):
        data.to_tensors(mixed)
    assert data.to_tensors(mixed, 40)[0].shape == (2, 3, 40, 40)


def test_references_are_scaled_with_their_images():
    pairs = [sample for sample in toy_samples(12) if sample.reference is not None]
    broken, sound, target = data.reference_batch(pairs, 4, seed=1, step=0, size=20)
    assert broken.shape == sound.shape == (4, 3, 20, 20) and target.shape == (4, 1, 20, 20)
    assert ((broken - sound).abs().amax(dim=1, keepdim=True)[target == 0] < 0.2).all()


def test_a_photograph_may_have_an_original_too():
    pair = toy_samples(2)[1]
    record = pair.record.model_copy(update={"source": "real"})
    sample = data.labelled(replace(pair, mask=None, record=record))
    assert sample.mask is not None and sample.mask.max() == 0 and sample.reference is not None


def test_an_unlabelled_sample_is_named():
    sample = toy_samples(2)[1]
    bare = replace(sample, mask=None)
    with pytest.raises(UserError, match=r"toy-0001 .*no mask"):
        data.to_tensors([bare])


def test_batches_are_pure_and_every_epoch_holds_each_sample_once():
    samples = toy_samples(12)
    images, _ = data.to_tensors(samples)
    drawn = [data.training_batch(samples, 4, NO_AUGMENTATION, seed=1, step=k)[0] for k in range(3)]
    sums = torch.cat(drawn).sum(dim=(1, 2, 3)).sort().values
    torch.testing.assert_close(sums, images.sum(dim=(1, 2, 3)).sort().values)
    once, again, other = (
        data.training_batch(samples, 4, Augmentation(), seed=s, step=7)[0] for s in (1, 1, 2)
    )
    assert torch.equal(once, again) and not torch.equal(once, other)


def test_text_is_not_mirrored():
    samples = [s for s in toy_samples(16) if s.record.category == "bar"][:4]
    settings = NO_AUGMENTATION.model_copy(update={"flip": True, "unflipped": ("bar",)})
    images, _ = data.to_tensors(samples)
    keys = images.sum(dim=1).flatten(1).tolist()
    drawn, _ = data.training_batch(samples, 4, settings, seed=1, step=0)
    assert all(row in keys for row in drawn.sum(dim=1).flatten(1).tolist())
    named = {"category": "", "prompt": "A bar, bright"}
    asked = [replace(s, record=s.record.model_copy(update=named)) for s in samples]
    drawn, _ = data.training_batch(asked, 4, settings, seed=1, step=0)
    assert all(row in keys for row in drawn.sum(dim=1).flatten(1).tolist())
    control = settings.model_copy(update={"unflipped": ()})
    drawn, _ = data.training_batch(samples, 4, control, seed=1, step=0)
    assert not all(row in keys for row in drawn.sum(dim=1).flatten(1).tolist())


def test_spread_is_ascending_and_has_no_period():
    chosen = data.spread(100, 50)
    assert chosen == sorted(set(chosen)) and len(chosen) == 50
    assert 10 < sum(i % 2 for i in chosen) < 40


@pytest.mark.parametrize(
    ("make", "cure"),
    [
        (lambda p: p / "none", "check the path"),
        (lambda p: p, "neither shards nor images/"),
        (lambda p: (p / "images").mkdir() or p, "no image in"),
    ],
)
def test_what_is_no_data_is_named(tmp_path, make, cure):
    with pytest.raises(UserError, match=cure):
        data.open_labelled([make(tmp_path)])


def test_a_reference_of_another_size_is_named(tmp_path):
    folder = toy_folder(tmp_path / "f", 3)
    write_image(folder / "references" / "toy-0001.png", torch.zeros(3, 8, 8))
    with pytest.raises(UserError, match=r"toy-0001 is 8x8 pixels, its image 32x32"):
        [FolderSamples(folder)[i] for i in range(3)]
