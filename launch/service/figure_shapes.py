"""What goes over the wire of a job's figures, pictures and held-out images."""

from typing import Annotated, Literal

from pydantic import BaseModel, Field


class Curves(BaseModel):
    object: Literal["figures"] = "figures"
    last: str
    """The newest event that is in them."""
    curves: dict[str, list[Annotated[list[int | float], Field(min_length=2, max_length=2)]]]


class SheetShape(BaseModel):
    name: str
    step: int


class LookShape(BaseModel):
    step: int
    names: list[str]
    """Of pictures, one a prompt."""
    maps: list[str]
    """Of the same pictures' artifact maps, gray, where a detector looked."""


class Pictures(BaseModel):
    object: Literal["pictures"] = "pictures"
    sheets: list[SheetShape]
    looks: list[LookShape]
    prompts: list[str]


class BinShape(BaseModel):
    low: float
    high: float
    pixels: int
    """Of all images, predicted between the two."""
    predicted: float
    labelled: float


class CaseShape(BaseModel):
    key: str
    prompt: str
    category: str
    source: str
    error: float
    """Mean squared error of the map."""
    missed: float
    """Share of the pixels that are artifact and not flagged."""
    false_alarm: float
    image: str = ""
    """Names of pictures; label and map are gray."""
    label: str = ""
    map: str = ""


class HeldOut(BaseModel):
    object: Literal["held_out"] = "held_out"
    threshold: float = 0.5
    """From here a pixel counts as flagged."""
    groups: dict[str, dict[str, dict[str, float | None]]] = {}
    """Kind (`overall`, `source`, `category`, `generator`), group, figure."""
    reliability: list[BinShape] = []
    worst: list[CaseShape] = []
