"""The lists that ship are what the program composes, and share no head."""

from pathlib import Path

import pytest

import treat
from benchmarks import prompt_lists
from core.errors import UserError
from core.prompts import read_prompts

SHIPPED = Path(treat.__file__).parent / "prompt_lists"


def test_what_ships_is_what_is_composed(tmp_path):
    prompt_lists.main(prompt_lists.Config(out=tmp_path))
    for name in ("train.jsonl", "held_out.jsonl"):
        assert (tmp_path / name).read_bytes() == (SHIPPED / name).read_bytes()


def test_no_head_is_learnt_from_and_judged():
    train, held = (read_prompts(SHIPPED / f"{name}.jsonl") for name in ("train", "held_out"))
    assert len(train) + len(held) >= 1000 and len(held) == len(train) / 4
    heads = [head for found in prompt_lists.all_heads().values() for head in found]
    assert len(set(heads)) == len(heads)
    sides = [{max((h for h in heads if p.startswith(h)), key=len) for p in part}
             for part in (train, held)]  # fmt: skip
    assert len(sides[0]) == len(train) and not sides[0] & sides[1]


def test_more_prompts_than_there_are_is_refused(tmp_path):
    with pytest.raises(UserError, match="264 different prompts of faces"):
        prompt_lists.main(prompt_lists.Config(out=tmp_path, each=265))
    assert not list(tmp_path.iterdir())
