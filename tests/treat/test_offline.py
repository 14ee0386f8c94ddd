"""Real images and prompts: read, fitted, encoded once, split; nothing watched is learnt."""

import json

import numpy as np
import pytest
import torch

from base_models.sample import sample
from core.errors import UserError
from core.images import write_image
from core.samples import Record, Sample
from core.shard_writer import ShardWriter
from tests.tiny import SIZE, tiny_flux
from treat.cache import RowCache
from treat.offline import RealRows, cache_offline, fit, read_offline
from treat.texts import Sampler, encode_texts, split_prompts
from treat.update import Places

CPU = torch.device("cpu")


def pictures(n=4):
    return torch.rand(n, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "real"
    path.mkdir()
    for i, image in enumerate(pictures()):
        write_image(path / f"{i}.png", image)
        (path / f"{i}.txt").write_text(f"a hand {'x' * i}\n")
    return path


def test_a_folder_with_captions_beside(folder):
    real = read_offline(folder)
    assert real.captions == ["a hand", "a hand x", "a hand xx", "a hand xxx"]
    assert len(read_offline(folder, limit=2)) == 2
    (folder / "2.txt").unlink()
    with pytest.raises(UserError, match="2.png has no caption"):
        read_offline(folder)
    lines = [{"file_name": "2.png", "text": "a face"}]
    (folder / "metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert read_offline(folder).captions[2] == "a face"
    (folder / "1.txt").write_text("  \n")
    with pytest.raises(UserError, match="1.txt is empty: write the caption of 1.png into it"):
        read_offline(folder)
    assert read_offline(folder, captioned=False).captions[1] == ""
    with pytest.raises(UserError, match="0.png is one image: name a folder"):
        read_offline(folder / "0.png")
    for line in ('{"file_name": "2.png"}\n', '{"file_name": "2.png", "text": 5}\n'):
        (folder / "metadata.jsonl").write_text(line)
        with pytest.raises(UserError, match="does not parse"):
            read_offline(folder)


def test_shards(tmp_path):
    with ShardWriter(tmp_path / "shards") as writer:
        for i in range(3):
            record = Record(key=f"k{i}", source="real", prompt="a hand", caption="a sound hand")
            levels = np.full((SIZE, SIZE, 3), i * 50, np.uint8)
            writer.write(Sample(f"k{i}", levels, None, record))
    real = read_offline(tmp_path / "shards")
    assert real.captions == ["a sound hand"] * 3
    assert torch.equal(real.picture(2), torch.full((1, 3, SIZE, SIZE), 100 / 255))


def test_encoded_once_and_equal_to_the_encoders(folder, tmp_path, monkeypatch):
    model, real = tiny_flux(), read_offline(folder)
    cache = cache_offline(tmp_path / "cache", model, "base", real, SIZE, SIZE)
    rows = cache.rows([2, 0])
    expected = model.encode(torch.cat([real.picture(2), real.picture(0)]))
    torch.testing.assert_close(rows["latents"], expected)
    text = model.encode_prompts([real.captions[2], real.captions[0]])
    for name in text:
        torch.testing.assert_close(rows[name], text[name])

    def refuse(*_args):
        raise AssertionError("encoded twice")

    monkeypatch.setattr(type(model), "encode", refuse)
    again = cache_offline(tmp_path / "cache", model, "base", read_offline(folder), SIZE, SIZE)
    assert torch.equal(again.rows([2, 0])["latents"], rows["latents"])
    with pytest.raises(AssertionError):  # control: another base is another cache
        cache_offline(tmp_path / "cache", model, "other base", real, SIZE, SIZE)


HARM = {
    "nothing": lambda path: None,
    "a bit": lambda path: path.write_bytes(path.read_bytes()[:-1] + b"\7"),
    "its end": lambda path: path.write_bytes(path.read_bytes()[:-9]),
    "all of it": lambda path: path.write_bytes(b""),
    "its digest": lambda path: path.with_suffix(".sha256").unlink(),
}


@pytest.mark.parametrize("name", HARM)
def test_rows_that_are_not_what_was_written_are_computed_anew(name, tmp_path, capsys):
    computed = []

    def compute(start, stop):
        computed.append((start, stop))
        return {"x": torch.arange(start, stop)}

    RowCache(tmp_path, 5, chunk=2).fill(compute)
    assert computed == [(0, 2), (2, 4), (4, 5)]
    HARM[name](tmp_path / "rows-00000002.safetensors")
    cache = RowCache(tmp_path, 5, chunk=2).fill(compute)
    assert computed[3:] == ([] if name == "nothing" else [(2, 4)])
    assert cache.rows(range(5))["x"].tolist() == [0, 1, 2, 3, 4]
    told = "rows-00000002.safetensors is damaged" in capsys.readouterr().err
    assert told == (name in ("a bit", "its end", "all of it"))


def test_held_out_real_images(folder, tmp_path):
    cache = cache_offline(tmp_path / "c", tiny_flux(), "base", read_offline(folder), SIZE, SIZE)
    rows = RealRows(cache, ["a"] * len(cache), CPU)
    assert list(rows.train) == [0, 1, 2, 3] and not len(rows.held)
    cache.n = 40
    rows = RealRows(cache, ["a"] * len(cache), CPU)
    assert list(rows.held) == [36, 37, 38, 39] and rows.train == range(36)


def test_fit_covers_and_cuts_the_centre():
    wide = torch.zeros(1, 3, 32, 96)
    wide[..., 32:64] = 1.0
    assert fit(wide, 32, 32).min() == 1.0
    assert fit(wide, 16, 16).shape == (1, 3, 16, 16)
    image = pictures(1)
    assert fit(image, SIZE, SIZE) is image


def test_split_by_line(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_text("".join(f"prompt {i}\n" for i in range(9)) + "prompt 0\n")
    split = split_prompts(path, held=5)
    assert split.held == ["prompt 8", "prompt 0"] and split.pictures == split.held
    assert "prompt 0" not in split.train and len(split.train) == 7
    apart = tmp_path / "watched.txt"
    apart.write_text("prompt 3\nother\nunused\n")
    split = split_prompts(path, held=2, watched_file=apart)
    assert split.held == ["prompt 3", "other"]
    assert len(split.train) == 9 and split.train.count("prompt 0") == 2
    path.write_text("prompt 3\nother\n")
    with pytest.raises(UserError, match="none is left to learn from"):
        split_prompts(path, held=2, watched_file=apart)
    path.write_text("one\n")
    assert split_prompts(path, held=5).train == split_prompts(path, held=5).held == ["one"]


def test_sampler_draws_what_sample_draws(tmp_path):
    model, path = tiny_flux(), tmp_path / "prompts.txt"
    path.write_text("a hand\na face\na sign\na tree\na wheel\n")
    texts = encode_texts(tmp_path / "cache", model, "base", split_prompts(path, 1), CPU)
    sampler = Sampler(model, texts, 2, SIZE, SIZE, batch=2, precision=torch.no_grad)
    rows, seeds = [3, 0, 4], [5, 6, 7]
    size = {"steps": 2, "height": SIZE, "width": SIZE, "batch": 2}
    plain = sample(model, texts.said(rows), seeds, **size)
    torch.testing.assert_close(sampler(rows, seeds), plain, atol=1.5 / 255, rtol=0)
    assert torch.equal(plain, (plain * 255).round() / 255)
    assert plain.min() >= 0 and plain.max() <= 1


def test_a_global_batch_is_the_same_however_it_is_shared():
    whole = Places(seed=3, batch=4, accumulation=1)
    split = Places(seed=3, batch=1, accumulation=2)
    split.processes, split.total = 2, 4
    for purpose, call in ((2, "seeds"), (4, "rows")):
        extra = (10,) if call == "rows" else ()
        shared = []
        for micro in range(2):
            for rank in range(2):
                split.rank = rank
                shared += getattr(split, call)(purpose, *extra, 7, split.here(micro))
        assert shared == getattr(whole, call)(purpose, *extra, 7, whole.here(0))
