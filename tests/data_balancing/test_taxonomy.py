"""The shipped tree is whole; a user's tree is checked before anything else happens."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from core.errors import UserError
from data_balancing.taxonomy import answer_type, load_taxonomy

SMALL = """
version: 1
categories:
  - {name: person, about: a human being}
  - {name: hand, parent: person, about: a hand}
  - {name: tree, about: a tree}
"""


def written(folder: Path, text: str) -> Path:
    path = folder / "own.yaml"
    path.write_text(text)
    return path


def test_the_shipped_tree():
    shipped = load_taxonomy()
    assert 20 <= len(shipped.leaves) <= 30
    assert {"hand", "face", "sign", "food"} <= set(shipped.leaves)
    assert "person" not in shipped.leaves
    assert shipped.with_parents(["sign", "hand"]) == ["person", "hand", "writing", "sign"]


def test_digest_follows_what_is_said(tmp_path: Path):
    first = load_taxonomy(written(tmp_path, SMALL)).digest
    assert load_taxonomy(written(tmp_path, SMALL + "\n# a remark\n")).digest == first
    assert load_taxonomy(written(tmp_path, SMALL.replace("a tree", "any tree"))).digest != first


def test_a_strange_name_has_no_parents(tmp_path: Path):
    own = load_taxonomy(written(tmp_path, SMALL))
    assert own.with_parents(["dragon"]) == [] and own.with_parents(["hand"]) == ["person", "hand"]


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("version: 1", "version: 2", "version"),
        ("parent: person", "parent: nobody", "nobody"),
        ("name: tree", "name: hand", "twice"),
        ("{name: person,", "{name: person, parent: hand,", "ancestor"),
        ("name: tree", "name: A Tree", "categories.2.name"),
        ("about: a tree", "abuot: a tree", "abuot"),
    ],
)
def test_faults_are_named(tmp_path: Path, old: str, new: str, said: str):
    with pytest.raises(UserError, match=said):
        load_taxonomy(written(tmp_path, SMALL.replace(old, new)))


def test_no_file(tmp_path: Path):
    with pytest.raises(UserError, match="there is no taxonomy"):
        load_taxonomy(tmp_path / "none.yaml")


def test_an_answer_holds_leaves_only(tmp_path: Path):
    kind = answer_type(load_taxonomy(written(tmp_path, SMALL)))
    assert kind.model_validate({"categories": ["hand"]}).categories == ("hand",)
    assert kind.model_validate({"categories": []}).categories == ()
    for bad in ({"categories": ["person"]}, {"categories": ["dragon"]}, {}, {"categories": "hand"}):
        with pytest.raises(ValidationError):
            kind.model_validate(bad)
