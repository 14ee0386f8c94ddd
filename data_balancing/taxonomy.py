"""A YAML file of categories in, the checked tree of what an image may show out.

Only leaves are answered; the categories above a leaf follow from it.
"""

import hashlib
import json
from functools import cached_property
from pathlib import Path
from types import GenericAlias
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, create_model, model_validator

from core.config import from_mapping, read_yaml
from core.errors import UserError

SHIPPED = Path(__file__).with_name("taxonomy.yaml")


class Category(BaseModel):
    """One name with its meaning in a line."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(pattern=r"^[a-z][a-z0-9_]{0,39}$")
    about: str = Field(min_length=1, max_length=200)
    parent: str | None = None


class Taxonomy(BaseModel):
    """All categories; every parent is named among them, and no one is its own ancestor."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: Literal[1]
    categories: tuple[Category, ...] = Field(min_length=2, max_length=500)

    @model_validator(mode="after")
    def _hangs_together(self) -> "Taxonomy":
        names = [category.name for category in self.categories]
        twice = next((name for i, name in enumerate(names) if name in names[:i]), None)
        if twice is not None:
            raise ValueError(f"category {twice!r} stands there twice; keep one.")
        for category in self.categories:
            if category.parent is not None and category.parent not in names:
                raise ValueError(
                    f"{category.name!r} has the parent {category.parent!r}, which is no category."
                )
            self._check_ends(category.name)
        return self

    def _check_ends(self, name: str) -> None:
        above: list[str] = [name]
        while (parent := self.parents[above[-1]]) is not None:
            if parent in above:
                raise ValueError(f"{name!r} is its own ancestor; mend the parents.")
            above.append(parent)

    @cached_property
    def parents(self) -> dict[str, str | None]:
        return {category.name: category.parent for category in self.categories}

    @cached_property
    def leaves(self) -> tuple[str, ...]:
        """The names that may be answered, in the file's order."""
        above = set(self.parents.values())
        return tuple(c.name for c in self.categories if c.name not in above)

    @property
    def digest(self) -> str:
        """sha256 of everything that a model is told of it."""
        text = json.dumps(self.model_dump(), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def about(self, name: str) -> str:
        return next(category.about for category in self.categories if category.name == name)

    def with_parents(self, names: list[str] | tuple[str, ...]) -> list[str]:
        """Names and all that stand above them, in the file's order; others are passed over."""
        found: set[str | None] = set()
        for name in names:
            step: str | None = name if name in self.parents else None
            while step is not None:
                found.add(step)
                step = self.parents[step]
        return [category.name for category in self.categories if category.name in found]


def load_taxonomy(path: Path | None = None) -> Taxonomy:
    """The shipped taxonomy, or a user's file; `UserError` naming the first fault."""
    path = SHIPPED if path is None else Path(path)
    if not path.is_file():
        raise UserError(f"there is no taxonomy {path}; name a YAML file like {SHIPPED.name}.")
    return from_mapping(Taxonomy, read_yaml(path), str(path))


class Seen(BaseModel):
    """What a tagger answers: leaves of the taxonomy."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    categories: tuple[str, ...] = ()


def answer_type(taxonomy: Taxonomy) -> type[Seen]:
    """`Seen` whose categories are these leaves and nothing else: its JSON schema says so."""
    leaves: Any = GenericAlias(tuple, (Literal[taxonomy.leaves], ...))
    return create_model("Seen", __base__=Seen, categories=(leaves, ...))
