"""The detector table's program, as small as it goes: every row, from its own data, once."""

import json

import pytest

from benchmarks import detector_table as bench
from core.shards import ShardStore


@pytest.mark.slow
def test_every_row_has_its_data_and_figures(tmp_path):
    few = {"labelled": 20, "real": 10, "pool": 30, "candidates": 15, "hard": 5}
    few |= {"tested": 10, "sound": 10}
    config = bench.Config(out=tmp_path / "table", seeds=(0,), steps=2, batch=4, **few)
    assert bench.main(config) is None
    rows = json.loads((tmp_path / "table/table.json").read_text())
    assert [row["row"] for row in rows] == list(bench.ROWS)
    assert all(row.keys() >= bench.COLUMNS.keys() for row in rows)
    place = tmp_path / "table/seed-0"
    hard = ShardStore(place / "hard")
    assert len(hard) == 5 and {record.source for record in hard.records()} == {"hard"}
    pseudo = ShardStore(place / "pseudo")
    assert len(pseudo) == 30 and not set(pseudo.keys) & set(hard.keys)
    assert {record.source for record in pseudo.records()} == {"pseudo"}
    sound = ShardStore(tmp_path / "table/data/sound")
    assert all(not (sample.mask >= 128).any() for sample in sound)
    assert bench.main(config) is None  # all is there: it only measures again
    assert json.loads((tmp_path / "table/table.json").read_text()) == rows
