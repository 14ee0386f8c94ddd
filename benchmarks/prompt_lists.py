"""Compose the prompt lists that ship in treat/prompt_lists/: what image models often break.

    python -m benchmarks.prompt_lists

People, hands, faces, animals and words, in equal shares. Who does what (the head of a prompt)
stands once in all, in one of the two lists: a combination that is judged on was never learnt.
The lists are our own and free for any use (CC0-1.0).
"""

import json
import random
from collections.abc import Iterator
from pathlib import Path

from pydantic import Field

import core.config
import treat
from core.errors import UserError
from core.storage import write_atomic

WHO = {
    "woman": "women", "man": "men", "girl": "girls", "boy": "boys", "nurse": "nurses",
    "carpenter": "carpenters", "dancer": "dancers", "chef": "chefs", "pianist": "pianists",
    "farmer": "farmers", "surgeon": "surgeons", "climber": "climbers", "teacher": "teachers",
    "fisherman": "fishermen", "grandmother": "grandmothers", "grandfather": "grandfathers",
    "cyclist": "cyclists", "violinist": "violinists", "mechanic": "mechanics",
    "student": "students",
}  # fmt: skip
DOING = (
    "riding a bicycle", "carrying a basket of apples", "playing chess", "doing a handstand",
    "throwing a ball", "waiting at a bus stop", "rowing a boat", "climbing a ladder",
    "reading a newspaper", "dancing in the rain", "shaking hands", "jumping over a puddle",
    "walking a dog", "sitting cross-legged", "pushing a pram", "playing table tennis",
    "practising yoga", "running for a train", "repairing a bicycle", "hanging out the washing",
)  # fmt: skip
WHOSE = (
    "a child's hand", "an old man's hands", "a woman's hand", "a potter's hands",
    "a pianist's hands", "a surgeon's gloved hands", "a baker's hands", "a climber's hand",
    "two clasped hands", "a gardener's hands", "an artist's hand", "a watchmaker's hands",
)  # fmt: skip
HANDLING = (
    "holding a pencil", "tying a shoelace", "peeling an orange", "playing a guitar chord",
    "making a peace sign", "counting coins", "holding chopsticks", "threading a needle",
    "kneading dough", "opening a jar", "typing on a keyboard", "holding a glass of water",
    "pointing at a map", "catching a tennis ball", "cupping a small bird", "knitting a scarf",
    "striking a match", "giving a thumbs-up", "shuffling a deck of cards", "spread out flat",
    "writing with chalk", "holding scissors", "folding a paper crane", "turning a key",
)  # fmt: skip
FACES = (
    "a laughing toddler", "an old fisherman", "a woman with freckles", "a man with a grey beard",
    "a girl with braces", "a boy with missing milk teeth", "a woman wearing glasses",
    "a bride with a veil", "a jazz singer", "a monk", "a woman with curly hair", "twins",
    "a man with a moustache", "a teenager with headphones", "a clown without make-up",
    "a grandmother with deep wrinkles", "a soldier in a helmet", "a swimmer with goggles",
    "a man yawning", "a woman winking", "a couple cheek to cheek", "a man with an eye patch",
)  # fmt: skip
SEEN = (
    "looking straight at the camera", "in profile", "looking over one shoulder", "seen from below",
    "with wet hair", "half in shadow", "biting a pear", "blowing out a candle", "with closed eyes",
    "smiling with teeth", "covering one eye", "reflected in a mirror",
)  # fmt: skip
ANIMALS = (
    "a cat", "a dog", "a horse", "a heron", "a spider", "an octopus", "a giraffe", "a goat",
    "a dragonfly", "a squirrel", "an elephant", "a crab", "a rooster", "a fox", "a zebra",
    "a kangaroo", "a beetle", "a swan", "a cow", "a deer", "a bat", "a flamingo",
)  # fmt: skip
BEHAVING = (
    "running", "drinking from a pond", "leaping over a fence", "lying on its back",
    "looking into the camera", "climbing a tree trunk", "scratching its ear", "with its young",
    "crossing a road", "standing on its hind legs", "asleep in the grass", "shaking off water",
)  # fmt: skip
CARRIERS = (
    "a shop sign that says", "a neon sign that reads", "a book cover with the title",
    "a birthday cake with the words", "a road sign that says", "a T-shirt printed with",
    "a chalkboard that says", "a poster with the headline", "a coffee cup labelled",
    "a protest banner that reads", "a newspaper with the headline", "a door plate that reads",
)  # fmt: skip
WORDS = (
    "OPEN", "BAKERY", "NO PARKING", "HAPPY BIRTHDAY", "EXIT", "FRESH FISH", "LIBRARY",
    "MIND THE STEP", "GOOD MORNING", "SALE", "BICYCLES", "PLEASE KNOCK", "THE QUIET SEA", "MUSEUM",
    "WET PAINT", "TICKETS", "SLOW DOWN", "THANK YOU", "ROOM 27", "HOT SOUP", "BOOKS AND MAPS",
    "KEEP LEFT",
)  # fmt: skip
INDOORS = ("in a kitchen", "in a workshop", "in a classroom", "by a window", "at a kitchen table")
OUTDOORS = ("on a beach", "in a snowy street", "in a park", "at a market", "in a garden",
            "in front of a brick wall", "on a rooftop")  # fmt: skip
PLACES = {"hands": INDOORS, "faces": INDOORS + OUTDOORS}
"""The other categories' heads say enough of where they are."""
STYLES = (
    "photograph", "photograph, soft morning light", "close-up photograph", "35 mm film photograph",
    "photograph at dusk", "oil painting", "watercolour", "flat illustration", "pencil drawing",
    "photograph, shallow depth of field",
)  # fmt: skip


class Config(core.config.Config):
    """How many prompts; the shipped lists are the defaults'."""

    out: Path = Path(treat.__file__).parent / "prompt_lists"
    """Folder of the lists."""
    each: int = Field(240, ge=5)
    """Prompts of a category."""
    held_out: float = Field(0.2, gt=0, lt=1)
    """Share of the prompts that is for evaluation."""
    seed: int = Field(0, ge=0)
    """Of the words."""


def main(config: Config) -> None:
    for category, heads in all_heads().items():
        if config.each > len(heads):
            raise UserError(
                f"there are {len(heads)} different prompts of {category}: lower --each."
            )
    config.out.mkdir(parents=True, exist_ok=True)
    lists: dict[str, list[str]] = {"train": [], "held_out": []}
    for category, heads in sorted(all_heads().items()):
        found = list(composed(category, heads, config.each, config.seed))
        cut = round(len(found) * config.held_out)
        lists["held_out"] += found[:cut]
        lists["train"] += found[cut:]
    for name, prompts in lists.items():
        random.Random(config.seed).shuffle(prompts)
        write_atomic(config.out / f"{name}.jsonl", "".join(prompts).encode())
        print(f"{len(prompts)} prompts in {config.out / name}.jsonl")


def all_heads() -> dict[str, list[str]]:
    """Who does what, by category; every pair once."""
    people = [
        f"{number} {who if number == 'a' else many} {doing}"
        for number in ("a", "two", "three")
        for who, many in WHO.items()
        for doing in DOING
    ]
    return {
        "people": people,
        "hands": [f"{whose} {handling}" for whose in WHOSE for handling in HANDLING],
        "faces": [f"{face} {seen}" for face in FACES for seen in SEEN],
        "animals": [f"{animal} {behaving}" for animal in ANIMALS for behaving in BEHAVING],
        "words": [f'{carrier} "{words}"' for carrier in CARRIERS for words in WORDS],
    }


def composed(category: str, heads: list[str], n: int, seed: int) -> Iterator[str]:
    """n lines, each with a head of its own, perhaps a place, and a style."""
    draw = random.Random(f"{seed} {category}")
    for head in draw.sample(heads, n):
        places = PLACES.get(category, ())
        place = f" {draw.choice(places)}" if places and draw.random() < 0.6 else ""
        prompt = f"{head}{place}, {draw.choice(STYLES)}"
        yield json.dumps({"prompt": prompt, "category": category}) + "\n"


if __name__ == "__main__":
    core.config.run_program(main, Config, prog="python -m benchmarks.prompt_lists")
