"""One round: what earlier rounds left in, a new detector and its score out, stage by stage.

tags.jsonl balance/                    what the images so far show, and what is judged oddly
prompts.jsonl synthetic/               new images of those categories
hard/ to_annotate/ annotated/ pseudo/  who labels which, and the labels
training/ score.json                   the detector that learnt from all, and its figures
stages.json                            which of these are finished
"""

import json
import random
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import detector.evaluate
import detector.train
from core.config import from_mapping
from core.errors import UserError
from core.image_files import list_images
from core.interrupts import Interrupts
from core.run import PAUSED
from core.seeds import mix
from core.storage import write_atomic
from data_balancing import (
    annotate_in,
    annotate_out,
    balance,
    hard_cases,
    pseudo_label,
    synthesize,
    tag,
    write_prompts,
)
from data_balancing.annotator_command import annotate
from data_balancing.prompt_file import read_prompt_lines
from data_balancing.round_settings import Config
from data_balancing.taxonomy import load_taxonomy
from detector.sources import open_data
from detector.storage import read_description

MASKS = ("masks/*.png", "annotators/*/*.png")
"""What people paint, of one or of several."""


class Round:
    """Round `number` of a folder; every stage returns an exit code, and may be called again."""

    def __init__(self, config: Config, number: int, teacher: Path):
        self.config, self.number, self.teacher = config, number, teacher
        self.folder = config.out / f"round-{number}"
        self.detector = self.folder / "training/detector"
        self.earlier = [config.out / f"round-{i}" for i in range(1, number)]
        self.pool = self.earlier[-1] / "synthetic" if self.earlier else config.pool

    # Stages, in order

    def tag(self) -> None:
        """What the images so far show; an image without tags counts in no category."""
        c = self.config
        if self.pool is not None:
            who: dict[str, Any] = {"endpoint": c.endpoint, "model": c.model}
            who = {"from_records": True} if c.from_records else who
            out = self.folder / "tags.jsonl"
            call(tag, store=self.pool, out=out, taxonomy=c.taxonomy, **who)

    def balance(self) -> None:
        """Which categories the teacher judges oddly."""
        if self.pool is not None and not self.tagged():
            print(f"No image of {self.pool} has a tag: all categories get as many new images.")
        elif self.pool is not None:
            call(
                balance,
                store=self.pool,
                tags=self.folder / "tags.jsonl",
                detector=self.teacher,
                out=self.folder / "balance",
                taxonomy=self.config.taxonomy,
                device=self.config.device,
            )

    def prompts(self) -> None:
        """For those categories, else for all; none that was used or that is scored on."""
        c, out = self.config, self.folder / "prompts.jsonl"
        who: dict[str, Any] = {"endpoint": c.endpoint, "model": c.model}
        call(
            write_prompts,
            out=out,
            categories=self.needed(),
            n=c.synthetic // c.n_per_prompt,
            taxonomy=c.taxonomy,
            avoid=(*self.scored_on(), *(one / "prompts.jsonl" for one in self.earlier)),
            seed=c.seed,
            **({"from_list": c.prompt_list} if c.prompt_list else who),
        )
        if not out.is_file():
            raise UserError(f"no new prompt is left for {self.folder}: give a longer list.")

    def synthesize(self) -> None:
        call(
            synthesize,
            base=self.config.base,
            prompts=self.folder / "prompts.jsonl",
            out=self.folder / "synthetic",
            n_per_prompt=self.config.n_per_prompt,
            seed=self.config.seed,
            device=self.config.device,
            **self.config.draw.model_dump(),
        )

    def hard_cases(self) -> None:
        """Which of the new images people label."""
        if self.config.hard:
            call(
                hard_cases,
                store=self.folder / "synthetic",
                detector=self.teacher,
                second_detector=self.config.second_detector,
                labelled=self.stores(self.earlier),
                n=self.config.hard,
                out=self.folder / "hard",
                device=self.config.device,
            )

    def annotate(self) -> int | None:
        """By the command, else by people, whom the round waits for: then `PAUSED`."""
        if not self.config.hard:
            return None
        by_people, store = not self.config.annotator, self.folder / "synthetic"
        handed = self.folder / ("to_annotate" if by_people else "for_the_command")
        call(
            annotate_out,
            store=store,
            out=handed,
            tool="png",
            keys=self.folder / "hard/keys.txt",
            detector=self.teacher if by_people else None,
            device=self.config.device,
        )
        if not (painted(handed) if by_people else commanded(handed, self.config.annotator)):
            return PAUSED
        out = self.folder / "annotated"
        call(annotate_in, exported=handed, store=store, out=out, tool="png", source="hard")

    def pseudo_label(self) -> None:
        """The teacher labels what people do not; of a pool, in the first round, all of it."""
        keys = self.folder / "hard/keys.txt" if self.config.hard else None
        pool = None if self.earlier else self.pool
        for name, store, left in (
            ("pool", pool, None),
            ("synthetic", self.folder / "synthetic", keys),
        ):
            if store is not None:
                call(
                    pseudo_label,
                    data=(store,),
                    detector=self.teacher,
                    out=self.folder / "pseudo" / name,
                    leave_out=left,
                    device=self.config.device,
                )

    def train(self) -> int | None:
        """From the teacher, on the data of all rounds."""
        given = self.config.train.model_dump(exclude={"init"})
        if self.config.train.init == "teacher":
            given["init"] = self.teacher
        else:
            given |= read_description(self.teacher).config.model_dump()
        return call(
            detector.train,
            data=self.stores([*self.earlier, self.folder]),
            out=self.folder / "training",
            seed=self.config.seed + self.number,
            device=self.config.device,
            **given,
        )

    def score(self) -> None:
        """On images by people that no round has learnt from."""
        measure(self.config, self.detector, self.folder / "score.json")

    # What stages share

    def run(self, stage: Callable[[], int | None]) -> int | None:
        """Run a stage unless it is finished, and note that it is; its seconds add up."""
        path, name = self.folder / "stages.json", stage.__name__
        stages = read_stages(path)
        if stages.get(name, {}).get("finished"):
            return None
        self.folder.mkdir(parents=True, exist_ok=True)
        print(f"\n== round {self.number}: {name.replace('_', ' ')}", file=sys.stderr)
        begun = time.monotonic()
        code = stage()
        spent = stages.get(name, {}).get("seconds", 0.0) + time.monotonic() - begun
        stages[name] = {"seconds": round(spent, 1), "finished": not code}
        write_atomic(path, (json.dumps(stages, indent=2) + "\n").encode())
        return code

    def tagged(self) -> bool:
        """Whether there are statistics to take: some image has a tag."""
        return self.pool is not None and (self.folder / "tags.jsonl").stat().st_size > 0

    def needed(self) -> tuple[str, ...]:
        """The categories that stand out, else all; of those that prompts can be had for.

        All are in an order of chance, for the first come where there are fewer prompts than names.
        """
        taxonomy, c = load_taxonomy(self.config.taxonomy), self.config
        known = list(taxonomy.leaves)
        if c.prompt_list is not None:
            known = list(dict.fromkeys(p.category for p in read_prompt_lines(c.prompt_list)))
        random.Random(mix(c.seed, self.number)).shuffle(known)
        if not self.tagged():
            return tuple(known)
        odd = json.loads((self.folder / "balance/balance.json").read_text())["anomalous"]
        there = taxonomy.with_parents(known)
        return tuple(name for name in odd["high"] + odd["low"] if name in there) or tuple(known)

    def scored_on(self) -> list[Path]:
        """A list of the held-out images' prompts, where they have any."""
        path = self.config.out / "held_out_prompts.jsonl"
        if not path.is_file():
            said = {record.prompt for record in open_data((self.config.held_out,))[1]}
            lines = [json.dumps({"prompt": prompt}) + "\n" for prompt in sorted(said) if prompt]
            write_atomic(path, "".join(lines).encode())
        return [path] if path.stat().st_size else []

    def stores(self, rounds: list[Path]) -> tuple[Path, ...]:
        """The labelled data so far and of some rounds; a store may hold nothing."""
        names = ("annotated", "pseudo/pool", "pseudo/synthetic")
        made = (one / name for one in rounds for name in names)
        return (*self.config.labelled, *(p for p in made if any(p.glob("*.manifest.jsonl"))))


def call(program: Any, **given: Any) -> int | None:
    """Run a program of this package with these settings, which are checked as a user's are."""
    return program.main(from_mapping(program.Config, given, f"the settings of {program.__name__}"))


def read_stages(path: Path) -> dict[str, dict[str, Any]]:
    """What is noted of each stage; every one may run again, so the note can be done without."""
    try:
        return {name: dict(one) for name, one in json.loads(path.read_text()).items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path} is damaged; remove it and run the same command again: each stage goes on from "
            "what it finds."
        ) from error


def measure(config: Config, folder: Path, out: Path) -> None:
    """A detector's figures on the held-out images, as JSON."""
    out.parent.mkdir(parents=True, exist_ok=True)
    call(
        detector.evaluate,
        detector=folder,
        data=(config.held_out,),
        json_file=out,
        size=config.train.size,
        device=config.device,
    )


def commanded(folder: Path, command: tuple[str, ...]) -> bool:
    """Have the command paint the masks; False where a signal asked to stop."""
    signals = Interrupts()
    try:
        return annotate(folder, command, lambda: signals.received)
    finally:
        signals.close()


def painted(folder: Path) -> bool:
    """Whether a person has painted every image; else say what is missing, and where."""
    keys = {path.stem for path in list_images(folder / "images")}
    there = {path.stem for where in MASKS for path in folder.glob(where)}
    missing = sorted(keys - there)
    if missing:
        print(
            f"{len(missing)} of {len(keys)} images wait for people ({missing[0]} first): paint "
            f"{folder}/masks/KEY.png, several people annotators/NAME/KEY.png (8-bit, 255 = "
            "artifact; guesses/ holds the teacher's to begin with), then run the same command "
            "again."
        )
    return not missing
