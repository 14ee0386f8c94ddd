"""A balance in, diverse prompts for the categories that need images out.

    diffdoctor data prompts --balance balance/balance.json --templates --n 200 --out prompts.jsonl

With `--endpoint` and `--model` a language model writes; with `--templates` a small grammar does;
with `--from-list` the next prompts of a list that are not used yet are taken.
OUT grows line by line: running again goes on where it was.
"""

import json
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import count, islice, repeat
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, model_validator
from tqdm import tqdm

import core.config
from core.errors import UserError
from core.explain import unknown_name
from core.seeds import mix
from core.storage import append_line, check_file, read_json
from data_balancing.asking import Endpoint, Message, Model, Unanswered, ask
from data_balancing.grammar import Grammar, load_grammar
from data_balancing.prompt_file import MAX_PROMPT, Distinct, PromptLine, read_prompt_lines
from data_balancing.taxonomy import Taxonomy, load_taxonomy

AT_ONCE = 20
"""Prompts asked for in one request: more of them resemble one another."""
STALLED = 3
"""Rounds without a new prompt after which a category is given up."""
SHOWN = 20
"""Prompts of before that a request names as not to be repeated."""
EXAMPLES = 5
"""Lines of variety that a request gives."""
INSTRUCTION = """You write prompts for a text-to-image model. Each is one plain sentence part in \
English of 8 to 30 words that describes a single picture, in which the category asked for is \
plainly in view. Vary subject, number, age, action, viewpoint, distance, place, light and style; \
mix easy views with difficult ones. Name no living person, no artist and no brand. Answer with a \
JSON object {"prompts": [...]}."""


class Written(BaseModel):
    """What the language model answers."""

    model_config = ConfigDict(extra="forbid")

    prompts: list[str]


class Config(core.config.Config):
    """Settings of one list of prompts."""

    out: Path
    """The .jsonl file of prompts."""
    balance: Path | None = None
    """balance.json: the categories that stand out there are written for."""
    categories: tuple[str, ...] = ()
    """Instead, or to narrow it down: names of categories."""
    n: int = Field(200, ge=1, le=1_000_000)
    """Prompts in all, as many for each category."""
    endpoint: str | None = None
    """Address of an OpenAI-compatible server."""
    model: str | None = None
    """Name of the model there."""
    templates: bool = False
    """Write by the grammar instead."""
    grammar: Path | None = None
    """Words of your own, as in data_balancing/prompt_words.yaml."""
    from_list: Path | None = None
    """Take them from this .jsonl of prompts with categories, in its order, instead."""
    taxonomy: Path | None = None
    """Categories of your own, as in data_balancing/taxonomy.yaml."""
    avoid: tuple[Path, ...] = ()
    """Lists of prompts that must not be repeated, such as those held out to evaluate by."""
    seed: int = 0
    """Of the templates and of what the model is shown."""

    @model_validator(mode="after")
    def _one_writer(self) -> "Config":
        if (self.endpoint is not None) + self.templates + (self.from_list is not None) != 1:
            raise ValueError("give either --endpoint with --model, or --templates, or --from-list.")
        if (self.endpoint is None) != (self.model is None):
            raise ValueError("--endpoint and --model go together.")
        if self.balance is None and not self.categories:
            raise ValueError("give --balance or --categories.")
        if self.out.suffix != ".jsonl":
            raise ValueError("--out must end in .jsonl.")
        return self


Writer = Callable[[str, int, Sequence[str]], Iterator[list[str]]]
"""(category, how many, those it has so far) -> rounds without end of prompts, known ones too."""


def main(config: Config) -> int | None:
    """Write until every category has its share; exit code 1 when some could not be filled."""
    check_file(config.out)
    taxonomy, grammar = load_taxonomy(config.taxonomy), load_grammar(config.grammar)
    wanted = shares(needed(config.balance, config.categories, taxonomy), config.n)
    write: Writer
    if config.templates:
        write = by_grammar(grammar, taxonomy, wanted, config.seed)
    elif config.from_list is not None:
        write = by_list(read_prompt_lines(config.from_list), taxonomy)
    else:
        model = Endpoint(config.endpoint or "", config.model or "", temperature=1.0)
        write = by_model(model, grammar, taxonomy, config.seed)
    distinct = Distinct() if config.from_list is None else Distinct(near=math.inf)
    for prompt in (line.prompt for path in config.avoid for line in read_prompt_lines(path)):
        distinct.add(prompt)
    config.out.parent.mkdir(parents=True, exist_ok=True)
    lines = read_prompt_lines(config.out) if config.out.is_file() else []
    had: dict[str, list[str]] = {category: [] for category in wanted}
    for line in lines:
        distinct.add(line.prompt)
        had.setdefault(line.category, []).append(line.prompt)
    short = fill(config.out, wanted, had, distinct, write)
    written = read_prompt_lines(config.out) if config.out.is_file() else []
    print(f"{config.out}: {len(written)} prompts")
    for category, missing in short.items():
        print(f"{category}: {missing} prompts fewer than wanted, no new ones came.")
    return 1 if short else None


def needed(balance: Path | None, names: Sequence[str], taxonomy: Taxonomy) -> list[str]:
    """The categories to write for: those named, else those that stand out in the balance."""
    if names:
        return _checked(list(dict.fromkeys(names)), taxonomy, "--categories")
    found = read_json(balance).get("anomalous") if balance and balance.is_file() else None
    if not isinstance(found, dict):
        raise UserError(f"{balance} is no balance.json; make it with `diffdoctor data balance`.")
    odd = [str(name) for side in ("high", "low") for name in found.get(side, [])]
    if not odd:
        raise UserError(f"in {balance} no category stands out; name some with --categories.")
    return _checked(odd, taxonomy, str(balance))


def shares(categories: Sequence[str], n: int) -> dict[str, int]:
    """n in equal parts, the first ones one larger."""
    return {
        category: n // len(categories) + (i < n % len(categories))
        for i, category in enumerate(categories)
    }


def fill(
    out: Path,
    wanted: dict[str, int],
    had: dict[str, list[str]],
    distinct: Distinct,
    write: Writer,
) -> dict[str, int]:
    """Write and append until all have enough; what is still missing where nothing new comes."""
    done = sum(min(len(had[category]), n) for category, n in wanted.items())
    with tqdm(total=sum(wanted.values()), initial=done, desc="prompts") as bar:
        for category, n in wanted.items():
            stalled, rounds = 0, write(category, n, had[category])
            while len(had[category]) < n and stalled < STALLED:
                before = len(had[category])
                for prompt in map(_tidy, next(rounds)):
                    if len(had[category]) < n and prompt and distinct.add(prompt):
                        append_line(out, json.dumps({"prompt": prompt, "category": category}))
                        had[category].append(prompt)
                new = len(had[category]) - before
                stalled = 0 if new else stalled + 1
                bar.update(new)
    return {name: n - len(had[name]) for name, n in wanted.items() if len(had[name]) < n}


def by_grammar(
    grammar: Grammar, taxonomy: Taxonomy, categories: Iterable[str], seed: int
) -> Writer:
    """The grammar's prompts in their order but for those it has: a resumed list is the same."""
    for category in categories:
        grammar.of(category, taxonomy)  # refused before anything is written
    names = list(taxonomy.parents)

    def write(category: str, n: int, had: Sequence[str]) -> Iterator[list[str]]:
        known, number = set(had), names.index(category)
        every = (grammar.write(category, taxonomy, seed, number, i) for i in count())
        new = (prompt for prompt in every if prompt not in known)
        while True:
            yield list(islice(new, 10 * AT_ONCE))

    return write


def by_list(lines: Sequence[PromptLine], taxonomy: Taxonomy) -> Writer:
    """The list's prompts of the category and of those beneath it, once: who made the list chose
    how much they may resemble one another."""

    def write(category: str, n: int, had: Sequence[str]) -> Iterator[list[str]]:
        yield [p.prompt for p in lines if category in taxonomy.with_parents([p.category])]
        yield from repeat([])

    return write


def by_model(model: Model, grammar: Grammar, taxonomy: Taxonomy, seed: int) -> Writer:
    """Prompts of a language model, each request with other seeds of variety."""
    names = list(taxonomy.parents)

    def write(category: str, n: int, had: Sequence[str]) -> Iterator[list[str]]:
        for round in count():
            number = mix(seed, names.index(category), len(had), round)
            variety = ["; ".join(grammar.vary(number, i)) for i in range(EXAMPLES)]
            missing = min(AT_ONCE, n - len(had))
            asked = request(category, taxonomy.about(category), missing, variety, had[-SHOWN:])
            try:
                yield ask(model, asked, Written).prompts
            except Unanswered as error:
                tqdm.write(f"{category}: {error}")
                yield []

    return write


def request(
    category: str, about: str, missing: int, variety: Sequence[str], had: Sequence[str]
) -> list[Message]:
    """What is asked for, what to vary by, and what is there already."""
    name = category.replace("_", " ")
    parts = [
        f'Write {missing} prompts of the category "{name}": {about}.',
        "Take settings such as these, and others: " + " | ".join(variety),
    ]
    if had:
        parts.append("Do not repeat or rephrase these:\n" + "\n".join(had))
    return [
        {"role": "system", "content": INSTRUCTION},
        {"role": "user", "content": "\n\n".join(parts)},
    ]


def _checked(names: list[str], taxonomy: Taxonomy, where: str) -> list[str]:
    for name in names:
        if name not in taxonomy.parents:
            raise UserError(unknown_name(name, taxonomy.parents, where))
    return names


def _tidy(prompt: str) -> str:
    """One line, without quotes around it; empty where it is too long to be a prompt."""
    plain = " ".join(prompt.split())
    if len(plain) > 1 and plain[0] == plain[-1] == '"':
        plain = plain[1:-1].strip()
    return plain if len(plain) <= MAX_PROMPT else ""


if __name__ == "__main__":
    core.config.run_program(main, Config, prog="diffdoctor data prompts")
