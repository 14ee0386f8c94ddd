"""Parquet files as `datasets` writes them: text and pictures by position; bad ones say so."""

import pytest
import torch

from core.errors import UserError
from core.image_files import encode_png
from core.images import from_uint8, to_uint8, write_image
from core.parquet import ParquetRows
from core.prompts import read_prompts
from treat.offline import read_offline

pyarrow = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")

PICTURES = from_uint8(to_uint8(torch.rand(5, 3, 8, 8, generator=torch.Generator().manual_seed(0))))
WORDS = [f"a hand {i}" for i in range(5)]


def encoded(i, kind):
    content = encode_png(to_uint8(PICTURES[i : i + 1])[0])
    return {"bytes": content, "path": f"{i}.png"} if kind == "struct" else content


def write(path, rows, column="text", kind="struct", **changes):
    path.parent.mkdir(parents=True, exist_ok=True)
    columns = {"image": [encoded(i, kind) for i in rows], column: [WORDS[i] for i in rows]}
    parquet.write_table(pyarrow.table(columns | changes), path, row_group_size=2)
    return path


@pytest.fixture
def folder(tmp_path):
    """Five rows in two files, in row groups of two; the files differ in how they name things."""
    write(tmp_path / "set/data/train-00000.parquet", [0, 1, 2])
    write(tmp_path / "set/data/train-00001.parquet", [3, 4], "caption", "bytes")
    return tmp_path / "set"


def test_rows_of_several_files_in_any_order(folder):
    rows = ParquetRows(folder)
    assert len(rows) == 5
    for i in (4, 0, 2, 1, 3, 3):
        assert torch.equal(from_uint8(rows.picture(i)[None])[0], PICTURES[i])
    assert rows.texts(["text", "caption"]) == WORDS
    with pytest.raises(UserError, match="train-00001.parquet has no column 'text', only image"):
        rows.texts(["text"])
    with pytest.raises(IndexError):
        rows.picture(5)


def test_as_real_images_and_as_prompts(folder):
    real = read_offline(folder)
    assert real.captions == WORDS and torch.equal(real.picture(3)[0], PICTURES[3])
    assert read_offline(folder, limit=2).captions == WORDS[:2]
    one = read_offline(folder / "data/train-00000.parquet")
    assert len(one) == 3 and one.name != real.name
    listed = write(folder / "prompts.parquet", [0, 1], "prompt")
    assert read_prompts(listed) == WORDS[:2]
    with pytest.raises(UserError, match="no column 'prompt'"):
        read_prompts(folder / "data/train-00000.parquet")


def test_pictures_are_read_a_row_group_at_a_time(folder, monkeypatch):
    read, groups = parquet.ParquetFile.read_row_group, []

    def counted(self, group, *rest):
        groups.append(group)
        return read(self, group, *rest)

    monkeypatch.setattr(parquet.ParquetFile, "read_row_group", counted)
    rows = ParquetRows(folder)
    for i in range(5):
        rows.picture(i)
    assert groups == [0, 1, 0]


def test_what_is_refused(tmp_path):
    file = tmp_path / "set.parquet"
    write(file, [0, 1], text=["a hand", None])
    with pytest.raises(UserError, match="no caption in row 1"):
        read_offline(file)
    write(file, [0, 1], image=[{"bytes": None, "path": "elsewhere.png"}] * 2)
    with pytest.raises(UserError, match="row 1 holds no picture: write its bytes"):
        read_offline(file).picture(1)
    write(file, [0, 1], image=[b"no picture"] * 2)
    with pytest.raises(UserError, match="row 0 is none of PNG"):
        read_offline(file).picture(0)
    with pytest.raises(UserError, match="no column 'text' or 'caption'"):
        write(file, [0], "words")
        read_offline(file)
    content = file.read_bytes()
    for damaged in (b"", b"PAR1", content[: len(content) // 2], b"x" * 100):
        file.write_bytes(damaged)
        with pytest.raises(UserError, match="is damaged or no Parquet file"):
            read_offline(file)
    with pytest.raises(UserError, match="there is no folder"):
        read_offline(tmp_path / "nothing")


def test_images_beside_a_parquet_file_are_a_folder_of_images(tmp_path):
    write_image(tmp_path / "a.png", PICTURES[0])
    (tmp_path / "a.txt").write_text("a hand")
    write(tmp_path / "metadata.parquet", [0, 1])
    assert read_offline(tmp_path).captions == ["a hand"]


def test_columns_that_are_no_text_and_files_without_pictures(tmp_path):
    listed = write(tmp_path / "lists.parquet", [0, 1], text=[["a", "b"], ["c"]])
    with pytest.raises(UserError, match="'text' of .* holds a list where a text should be"):
        read_offline(listed)
    words = tmp_path / "words.parquet"
    parquet.write_table(pyarrow.table({"text": WORDS}), words)
    with pytest.raises(UserError, match="no column 'image', only text"):
        read_offline(words)
    with pytest.raises(UserError, match="there is no Parquet file"):
        read_prompts(tmp_path / "nothing.parquet")


def test_damage_within_the_pages_is_said(folder):
    file = folder / "data/train-00000.parquet"
    content = bytearray(file.read_bytes())
    content[4:200] = bytes(196)
    file.write_bytes(content)
    with pytest.raises(UserError, match="damaged"):
        for i in range(3):
            read_offline(file).picture(i)
