"""A YAML grammar in, prompts of a category out; each is a pure function of (seed, number)."""

import re
from itertools import count
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from core.config import from_mapping, read_yaml
from core.errors import UserError
from core.seeds import mix
from data_balancing.taxonomy import Taxonomy

SHIPPED = Path(__file__).with_name("prompt_words.yaml")
PHRASE, VARY, WORD = 111, 112, 113
"""What a draw is for; see `core.seeds`."""
_SLOT = re.compile(r"\{(\w+)\}")

Lines = list[str]


class Grammar(BaseModel):
    """Phrases by category, the words that fill them, and what is added to vary them."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: Literal[1]
    added: Lines = []
    variety: dict[str, Lines] = Field(min_length=1)
    words: dict[str, Lines] = {}
    phrases: dict[str, Lines] = Field(min_length=1)

    @model_validator(mode="after")
    def _is_whole(self) -> "Grammar":
        lists = [*self.lists.items(), *self.phrases.items()]
        empty = next((name for name, lines in lists if not lines), None)
        if empty is not None:
            raise ValueError(f"{empty!r} has no line; write one.")
        for name, lines in self.phrases.items():
            for slot in (slot for line in lines for slot in _SLOT.findall(line)):
                if slot not in self.lists:
                    raise ValueError(f"a phrase of {name!r} names the word {slot!r}; define it.")
        strange = next((name for name in self.added if name not in self.variety), None)
        if strange is not None:
            raise ValueError(f"'added' names {strange!r}, which is no list of the variety.")
        return self

    @property
    def lists(self) -> dict[str, Lines]:
        """What a slot may name."""
        return {**self.variety, **self.words}

    def write(self, category: str, taxonomy: Taxonomy, *seed: int) -> str:
        """One prompt; a category with children takes the phrases of all of them."""
        phrase, lists = _pick(self.of(category, taxonomy), *seed, PHRASE), self.lists
        slots = count()
        filled = _SLOT.sub(lambda slot: _pick(lists[slot[1]], *seed, WORD, next(slots)), phrase)
        added = [_pick(self.variety[name], *seed, VARY, i) for i, name in enumerate(self.added)]
        return ", ".join([filled, *added])

    def vary(self, *seed: int) -> list[str]:
        """One line of each list of the variety."""
        return [_pick(lines, *seed, VARY, i) for i, lines in enumerate(self.variety.values())]

    def of(self, category: str, taxonomy: Taxonomy) -> Lines:
        """The phrases of a category and of those under it; `UserError` where there is none."""
        under = [leaf for leaf in taxonomy.leaves if category in taxonomy.with_parents([leaf])]
        found = [line for leaf in under for line in self.phrases.get(leaf, [])]
        if not found:
            raise UserError(
                f"the grammar has no phrase of {category!r}; add some and name it with --grammar, "
                "or let a model write with --endpoint."
            )
        return found


def load_grammar(path: Path | None = None) -> Grammar:
    """The shipped grammar, or a user's file; `UserError` naming the first fault."""
    path = SHIPPED if path is None else Path(path)
    if not path.is_file():
        raise UserError(f"there is no grammar {path}; name a YAML file like {SHIPPED.name}.")
    return from_mapping(Grammar, read_yaml(path), str(path))


def _pick(lines: Lines, *seed: int) -> str:
    return lines[mix(*seed) % len(lines)]
