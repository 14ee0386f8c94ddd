"""Images redrawn by a model: a perfect one changes nothing, each image has its own noise."""

import json

import numpy as np
import pytest
import torch

from core.errors import UserError
from core.heatmap import write_map
from core.images import read_image, round_to_8bit, write_image
from core.seeds import generator
from detector.sources import FolderSamples
from tests.tiny import SIZE, save_tiny, tiny_flux
from treat import redraw as program
from treat.redraw import redraw

IMAGES = torch.nn.functional.interpolate(
    torch.rand(2, 3, 4, 4, generator=generator(1)), (SIZE, SIZE), mode="bilinear"
)


def redrawn(start, seeds=(3, 4), model=None):
    model = model or tiny_flux()
    return redraw(model, IMAGES, ["a face", "a sign"], seeds, steps=4, start=start)


@pytest.mark.parametrize("start", [0, 2, 3])
def test_a_perfect_model_gives_the_image_back(start):
    model = tiny_flux()
    clean, noise = model.encode(IMAGES), model.noise((3, 4), SIZE, SIZE)
    whole = round_to_8bit(model.decode(clean))
    model._velocity = lambda *_: noise - clean
    torch.testing.assert_close(redrawn(start, model=model), whole, atol=1.1 / 255, rtol=0)
    assert (redrawn(start) - whole).abs().max() > 0.05  # control: this one is not perfect


def test_an_image_is_a_function_of_its_seed():
    assert torch.equal(redrawn(2), redrawn(2)) and not torch.equal(redrawn(2), redrawn(1))
    other = redrawn(2, (3, 5))
    torch.testing.assert_close(redrawn(2)[0], other[0], atol=1.1 / 255, rtol=0)
    assert (redrawn(2)[1] - other[1]).abs().max() > 0.01


@pytest.fixture
def setting(tmp_path):
    (tmp_path / "photographs").mkdir()
    for i, image in enumerate(IMAGES):
        write_image(tmp_path / f"photographs/{i}.png", image)
        (tmp_path / f"photographs/{i}.txt").write_text("a face")
    return program.Config(
        base=str(save_tiny(tmp_path / "base")),
        images=tmp_path / "photographs",
        out=tmp_path / "redrawn",
        height=SIZE,
        width=SIZE,
        batch=1,
    )


def test_a_folder_is_redrawn_goes_on_and_feeds_a_detector(setting):
    program.main(setting)
    out, first = setting.out, setting.out / "images/000000.png"
    content = first.read_bytes()
    first.unlink()
    program.main(setting)  # only what is missing
    assert first.read_bytes() == content
    for name in ("000000", "000001"):
        write_map(out / f"masks/{name}.png", torch.ones(1, SIZE, SIZE))
    samples = list(FolderSamples(out))
    assert [one.record.prompt for one in samples] == ["a face", "a face"]
    for sample, image in zip(samples, IMAGES, strict=True):
        assert sample.reference is not None and sample.record.referenced
        assert np.abs(sample.reference / 255 - image.permute(1, 2, 0).numpy()).max() < 1 / 255
        assert not np.array_equal(sample.image, sample.reference)
    assert torch.equal(read_image(first), torch.from_numpy(samples[0].image).permute(2, 0, 1) / 255)


def test_folders_of_something_else_are_not_touched(setting):
    program.main(setting)
    with pytest.raises(UserError, match="--out"):
        program.main(setting.model_copy(update={"seed": 1}))
    other = setting.model_copy(update={"out": setting.images})
    with pytest.raises(UserError, match="was not redrawn"):
        program.main(other)
    assert sorted(path.name for path in setting.images.iterdir()) == [
        "0.png", "0.txt", "1.png", "1.txt",
    ]  # fmt: skip


def test_what_was_not_said_is_noted(setting):
    asked = {"height": None, "width": None, "sampling_steps": None, "start": None, "limit": 1}
    unsaid = setting.model_copy(update=asked)
    program.main(unsaid)
    note = json.loads((setting.out / "redraw.json").read_text())
    assert [note[name] for name in ("height", "sampling_steps", "start")] == [SIZE, 4, 2]
    program.main(unsaid.model_copy(update={"height": SIZE, "sampling_steps": 4}))  # the same
    with pytest.raises(UserError, match="other settings"):
        program.main(unsaid.model_copy(update={"height": 2 * SIZE}))


def test_a_start_beyond_the_last_step_is_refused(setting):
    with pytest.raises(UserError, match="start is 4"):
        program.main(setting.model_copy(update={"start": 4}))
    assert not setting.out.exists()
