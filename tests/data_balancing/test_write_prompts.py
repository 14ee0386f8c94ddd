"""Prompts by a served model and by the grammar: enough, distinct, of their category, resumed."""

import hashlib
import json
from collections import Counter
from pathlib import Path
from random import Random

import numpy as np
import pytest

from core.errors import UserError
from data_balancing import write_prompts
from data_balancing.grammar import load_grammar
from data_balancing.prompt_file import Distinct, ngrams, normalised, read_prompt_lines
from data_balancing.taxonomy import load_taxonomy
from tests.data_balancing.server import serving

OWN = """
version: 1
added: [style]
variety: {style: [photograph, watercolour]}
words: {who: [cook, clerk]}
phrases: {hand: ["the hand of a {who}"], face: ["the face of a {who}"]}
"""


@pytest.fixture
def balance(tmp_path: Path) -> Path:
    path = tmp_path / "balance.json"
    path.write_text(json.dumps({"anomalous": {"high": ["hand"], "low": ["food"]}}))
    return path


def config(folder: Path, **changes) -> write_prompts.Config:
    settings = {"balance": folder / "balance.json", "out": folder / "prompts.jsonl", "n": 10}
    return write_prompts.Config(**{**settings, **changes})


def served(folder: Path, url: str, **changes) -> write_prompts.Config:
    return config(folder, endpoint=url, model="writer", **changes)


def many(number: int, n: int = 4) -> str:
    """n prompts that resemble neither each other nor those of another number."""
    words = [hashlib.sha256(f"{number},{i}".encode()).hexdigest()[:24] for i in range(n)]
    return json.dumps({"prompts": words})


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_model_writes_until_there_are_enough(tmp_path: Path, balance: Path):
    with serving(lambda body, number: many(number)) as server:
        assert write_prompts.main(served(tmp_path, server.url)) is None
    found = lines(tmp_path / "prompts.jsonl")
    assert Counter(line["category"] for line in found) == {"hand": 5, "food": 5}
    assert len({line["prompt"] for line in found}) == 10
    first, second = (body["messages"][1]["content"] for body in server.requests[:2])
    assert 'Write 5 prompts of the category "hand"' in first and "fingers" in first
    assert "Write 1 prompts" in second and found[0]["prompt"] in second  # not to be repeated
    settings = [text.split("\n\n")[1] for text in (first, second)]
    assert settings[0] != settings[1]  # each request varies by other seeds
    assert server.requests[0]["response_format"]["json_schema"]["strict"] is True
    assert server.requests[0]["temperature"] == 1


def test_the_same_again_and_again_stops(tmp_path: Path, balance: Path, capsys):
    said = json.dumps({"prompts": ["A hand, waving.", "a hand waving", "one apple on a dish"]})
    with serving(lambda body, _: said) as server:
        assert write_prompts.main(served(tmp_path, server.url)) == 1
    assert len(lines(tmp_path / "prompts.jsonl")) == 2
    assert len(server.requests) == 1 + 2 * write_prompts.STALLED
    assert "hand: 3 prompts fewer" in capsys.readouterr().out


def test_a_model_that_never_answers_leaves_prompts_missing(tmp_path: Path, balance: Path, capsys):
    with serving(lambda body, _: "no") as server:
        assert write_prompts.main(served(tmp_path, server.url)) == 1
    said = capsys.readouterr().out
    assert "prompts.jsonl: 0 prompts" in said and "hand: 5 prompts fewer" in said


def test_bad_answers_are_asked_again_and_cost_a_round(tmp_path: Path, balance: Path):
    with serving(lambda body, number: "no" if number < 4 else many(number, 5)) as server:
        assert write_prompts.main(served(tmp_path, server.url)) is None
    assert len(server.requests) == 3 + 2 + 1


def test_what_is_there_is_not_asked_for_again(tmp_path: Path, balance: Path):
    with serving(lambda body, number: many(number) if number < 2 else (403, "stop")) as server:
        with pytest.raises(UserError, match="403"):
            write_prompts.main(served(tmp_path, server.url))
    kept = (tmp_path / "prompts.jsonl").read_text()
    assert kept.count("\n") == 5
    with serving(lambda body, number: many(number + 9, 5)) as server:
        write_prompts.main(served(tmp_path, server.url))
        assert len(server.requests) == 1
        write_prompts.main(served(tmp_path, server.url))
        assert len(server.requests) == 1
    assert (tmp_path / "prompts.jsonl").read_text().startswith(kept)


def test_the_grammar_writes_without_a_server_and_resumes_to_the_same(tmp_path: Path, balance: Path):
    settings = {"templates": True, "n": 60}
    assert write_prompts.main(config(tmp_path, **settings)) is None
    whole = (tmp_path / "prompts.jsonl").read_bytes()
    half = tmp_path / "half.jsonl"
    half.write_bytes(b"".join(whole.splitlines(keepends=True)[:17]))
    write_prompts.main(config(tmp_path, out=half, **settings))
    assert half.read_bytes() == whole
    other = tmp_path / "other.jsonl"
    write_prompts.main(config(tmp_path, out=other, seed=1, **settings))  # the control
    assert other.read_bytes() != whole
    found = read_prompt_lines(tmp_path / "prompts.jsonl")
    distinct = Distinct()
    assert len(found) == 60 and all(distinct.add(line.prompt) for line in found)
    assert not any("{" in line.prompt for line in found)


def test_a_small_grammar_runs_dry(tmp_path: Path, capsys):
    own = tmp_path / "own.yaml"
    own.write_text(OWN)
    settings = {"templates": True, "grammar": own, "balance": None, "categories": ("person",)}
    assert write_prompts.main(config(tmp_path, **settings)) == 1
    found = [line["prompt"] for line in lines(tmp_path / "prompts.jsonl")]
    assert 2 <= len(found) <= 8 and {text.split()[1] for text in found} == {"hand", "face"}


def test_prompts_to_avoid_are_not_written(tmp_path: Path, balance: Path):
    write_prompts.main(config(tmp_path, templates=True))
    first = [line["prompt"] for line in lines(tmp_path / "prompts.jsonl")]
    held = tmp_path / "held_out.txt"
    held.write_text("# held out\n" + "\n".join(text.upper() for text in first))
    write_prompts.main(config(tmp_path, templates=True, out=tmp_path / "new.jsonl", avoid=(held,)))
    second = [line["prompt"] for line in lines(tmp_path / "new.jsonl")]
    assert len(second) == 10 and not set(first) & set(second)


def test_every_leaf_has_phrases_of_its_own():
    taxonomy, grammar = load_taxonomy(), load_grammar()
    assert set(grammar.phrases) == set(taxonomy.leaves)
    for name in taxonomy.parents:
        assert len({grammar.write(name, taxonomy, 0, i) for i in range(50)}) > 40


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("{who}", "{whom}", "whom"),
        ("added: [style]", "added: [stile]", "stile"),
        ("[cook, clerk]", "[]", "no line"),
        ("version: 1", "version: 3", "version"),
    ],
)
def test_faults_of_a_grammar_are_named(tmp_path: Path, old: str, new: str, said: str):
    own = tmp_path / "own.yaml"
    own.write_text(OWN.replace(old, new))
    with pytest.raises(UserError, match=said):
        load_grammar(own)


def test_near_duplicates():
    assert normalised("  Café,  the “Sea”! ") == "cafe the sea"
    assert ngrams("ab") == {" ab "} and len(ngrams("abcd")) == 3
    distinct = Distinct(near=0.5)
    assert distinct.add("abcdefgh") and not distinct.add("ABCDEFGH.")
    # runs of 4: 7 and 8, of which 6 are common: 6 / 9
    assert not distinct.add("abcdefghi")
    assert Distinct(near=0.7).add("abcdefgh") and distinct.add("stuvwxyz")
    strict = Distinct(near=0.67)
    assert strict.add("abcdefgh") and strict.add("abcdefghi")


@pytest.mark.parametrize("near", [0.3, 0.7, 0.9, 1.0])
def test_near_duplicates_are_those_of_comparing_all_with_all(near: float):
    taxonomy, grammar, draw = load_taxonomy(), load_grammar(), Random(0)
    texts = ["", "a", "b a", *(grammar.write("hand", taxonomy, 0, i) for i in range(150))]
    texts += ["".join(draw.choices("ab ", k=draw.randint(1, 12))) for _ in range(150)]
    texts += [text[draw.randint(0, 9) :] for text in texts]
    distinct, kept = Distinct(near), []
    for text in texts:
        plain = normalised(text)
        runs = ngrams(plain)
        twin = any(len(runs & had) / len(runs | had) >= near for _, had in kept)
        twin = twin or any(plain == had for had, _ in kept)
        assert distinct.add(text) is not twin, text
        kept += [] if twin else [(plain, runs)]
    assert 20 < len(kept) < len(texts) - 20


def test_few_texts_are_looked_at_for_a_near_duplicate(monkeypatch):
    taxonomy, grammar = load_taxonomy(), load_grammar()
    texts = [grammar.write(n, taxonomy, 0, i) for i in range(80) for n in taxonomy.leaves]
    looked = []
    count = np.count_nonzero
    monkeypatch.setattr(np, "count_nonzero", lambda given: looked.append(1) or count(given))
    distinct = Distinct()
    for text in texts:
        distinct.add(text)
    assert 0 < len(looked) < 10 * len(texts)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, "either --endpoint"),
        ({"templates": True, "endpoint": "http://x", "model": "m"}, "either --endpoint"),
        ({"endpoint": "http://x"}, "go together"),
        ({"templates": True, "balance": None}, "--balance or --categories"),
        ({"templates": True, "out": Path("x.txt")}, "jsonl"),
    ],
)
def test_settings_that_do_not_fit(tmp_path: Path, changes: dict, said: str):
    with pytest.raises(ValueError, match=said):
        config(tmp_path, **changes)


def test_what_cannot_be_written_for(tmp_path: Path, balance: Path):
    with pytest.raises(UserError, match="did you mean 'hand'"):
        write_prompts.main(config(tmp_path, templates=True, categories=("hnad",)))
    balance.write_text(json.dumps({"anomalous": {"high": [], "low": []}}))
    with pytest.raises(UserError, match="no category stands out"):
        write_prompts.main(config(tmp_path, templates=True))
    balance.write_text("{}")
    with pytest.raises(UserError, match=r"no balance\.json"):
        write_prompts.main(config(tmp_path, templates=True))
    own = tmp_path / "own.yaml"
    own.write_text(OWN)
    with pytest.raises(UserError, match="no phrase of 'food'"):
        write_prompts.main(config(tmp_path, templates=True, grammar=own, categories=("food",)))
    assert not (tmp_path / "prompts.jsonl").exists()


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.jsonl", b'{"prompt": "x"}\n{"prompt"', "line 2 of .* no JSON"),
        ("a.jsonl", b'{"text": "x"}', "line 1 of .*prompt"),
        ("a.jsonl", b'["x"]', "line 1"),
        ("a.jsonl", b'{"prompt": "  "}', "line 1"),
        ("a.txt", b"# nothing\n\n", "no prompt"),
        ("a.csv", b"prompt\nx", "jsonl or .txt"),
        ("a.txt", b"\xff\xfe", "UTF-8"),
    ],
)
def test_lists_that_are_none(tmp_path: Path, name: str, content: bytes, said: str):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=said):
        read_prompt_lines(tmp_path / name)


LIST = [
    *[("a hand", "hand"), ("a loaf", "food"), ("a left hand", "hand"), ("a hand", "hand")],
    *[("a cup", "food"), ("a fist", "hand"), ("a car", "car"), ("an open hand", "hand")],
]


def listed(folder: Path, rows=LIST) -> Path:
    path = folder / "list.jsonl"
    path.write_text("".join(json.dumps({"prompt": p, "category": c}) + "\n" for p, c in rows))
    return path


def test_a_list_gives_the_next_prompts_that_are_not_used_yet(tmp_path: Path, balance: Path):
    given = {"from_list": listed(tmp_path), "n": 4}
    assert write_prompts.main(config(tmp_path, **given)) is None
    first = lines(tmp_path / "prompts.jsonl")
    assert [(line["prompt"], line["category"]) for line in first] == [
        ("a hand", "hand"), ("a left hand", "hand"), ("a loaf", "food"), ("a cup", "food")
    ]  # fmt: skip
    assert write_prompts.main(config(tmp_path, **given)) is None  # again: nothing
    assert lines(tmp_path / "prompts.jsonl") == first
    second = {"avoid": (tmp_path / "prompts.jsonl",), "out": tmp_path / "second.jsonl", **given}
    assert write_prompts.main(config(tmp_path, **second)) == 1  # food is used up
    assert [line["prompt"] for line in lines(tmp_path / "second.jsonl")] == [
        "a fist", "an open hand"
    ]  # fmt: skip


def test_a_category_takes_those_beneath_it(tmp_path: Path):
    given = {"from_list": listed(tmp_path), "balance": None, "categories": ("person",), "n": 3}
    write_prompts.main(config(tmp_path, **given))
    found = lines(tmp_path / "prompts.jsonl")
    assert [line["prompt"] for line in found] == ["a hand", "a left hand", "a fist"]


def test_a_list_is_one_of_three_ways(tmp_path: Path):
    with pytest.raises(ValueError, match="--from-list"):
        config(tmp_path, from_list=tmp_path / "list.jsonl", templates=True)
