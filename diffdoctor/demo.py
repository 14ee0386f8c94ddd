"""The whole method in the miniature world: nothing in; a detector, an adapter and a verdict out.

Reads like a run script: every line of `main` is a stage, every stage is a folder. A stage that is
finished is passed over, one that was stopped resumes, so the same command always goes on.
"""

import json
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from rich.console import Console
from rich.table import Table

import detector.evaluate
import detector.train
import treat.evaluate
import treat.export
import treat.train
from core.errors import UserError
from core.run import plain
from core.storage import write_atomic
from diffdoctor import demo_data as data
from diffdoctor.demo_settings import OF_BASE, Config, Settings, quick
from miniature.bases import DETECTORS, base_folder
from miniature.law import SIZE
from miniature.meters import NAME, Bench
from miniature.prompts import split
from treat.lora_files.names import WEIGHTS
from treat.train import Config as Treatment

CONTROL = {"pixel_weight": 0.0, "lock_weight": 0.0}
"""The offline term alone."""
FIGURES = ("artifact_frequency", "artifact_area", "attribute_match", "entropy", "sharpness", "n")


def main(config: Config) -> int | None:
    """All stages in order; returns early with the exit code of one that was interrupted."""
    settings = quick(OF_BASE[config.base]) if config.quick else OF_BASE[config.base]
    demo = Demo(config.out, settings)
    demo.claim()
    for stage in (
        demo.prompts,
        demo.label,
        demo.train_detector,
        demo.train_second_detector,
        demo.measure_detector,
        demo.treat_control,
        demo.treat_adapter,
        demo.evaluate,
        demo.export,
    ):
        code = demo.run(stage)
        if code:
            return code
    summary = demo.summary()
    Console().print(table(summary))
    Console().print(f"report   {summary['report']}\nadapter  {summary['adapter_file']}")
    if config.quick:
        few = f"{settings.treat['steps']} updates, {settings.evaluated} images"
        Console().print(f"--quick shows the path and proves nothing: {few}.")
    return None


class Demo:
    """The stages; each reads what earlier ones left in their folders and returns an exit code."""

    def __init__(self, out: Path, settings: Settings):
        self.out, self.settings = Path(out), settings
        self.base = str(base_folder(settings.base))

    # Stages, in order

    def prompts(self) -> None:
        for part in ("train", "search", "held_out"):
            data.write_prompts(self.out / f"prompts/{part}.txt", part, self.settings.seed)

    def label(self) -> None:
        """Stores that share no image; the prompts of `test` are met nowhere else."""
        s, out = self.settings, self.out / "data"
        first, second, third, fourth = (4 * s.seed + i for i in range(4))
        train, held = split()["train"], split()["held_out"]
        for name in (s.base, *s.older):
            base, n = str(base_folder(name)), s.labelled
            data.write_generated(out / "train", base, train, n, s.sampling_steps, first)
            n = s.second_labelled
            data.write_generated(out / "second", base, train, n, s.sampling_steps, second)
        data.write_generated(out / "test", self.base, held, s.tested, s.sampling_steps, third)
        data.write_redrawn(out / "redrawn", self.base, train, s.redrawn, s.sampling_steps, first)
        data.write_renders(out / "train", self.base, train, s.renders, first)
        data.write_renders(out / "second", self.base, train, s.renders, second)
        data.write_renders(out / "test", self.base, held, s.tested, third)
        data.write_renders(out / "real", self.base, train, s.real, fourth)

    def train_detector(self) -> int | None:
        """The one that teaches: its gradient learns too."""
        aligned = {
            "alignment": self.settings.alignment,
            "alignment_data": (self.out / "data/redrawn",),
        }
        return self.detect("detector", "data/train", 0, aligned)

    def train_second_detector(self) -> int | None:
        return self.detect("second_detector", "data/second", 1, {})

    def measure_detector(self) -> None:
        given = {
            "detector": self.out / "detector",
            "data": (self.out / "data/test",),
            "json_file": self.out / "detector.json",
        }
        detector.evaluate.main(checked(detector.evaluate.Config, given))

    def treat_control(self) -> int | None:
        """The same adapter, data and steps with the offline term alone."""
        return self.treat("control", **CONTROL)

    def treat_adapter(self) -> int | None:
        return self.treat("adapter", **self.rewarded())

    def evaluate(self) -> int | None:
        oracle = Bench()
        config = treat.evaluate.Config(
            base=self.base,
            prompts=self.out / "prompts/held_out.txt",
            adapters=tuple(f"{name}={self.out / name}" for name in ("control", "adapter")),
            control="control",
            detectors=(
                f"reward={self.out / 'detector'}",
                f"second={self.out / 'second_detector'}",
            ),
            out=self.out / "evaluation",
            n=self.settings.evaluated,
            seed=self.settings.seed,
            sampling_steps=self.settings.sampling_steps,
            height=SIZE,
            width=SIZE,
            batch=100,
        )
        return treat.evaluate.main(config, oracle.judge, oracle.meters, oracle.flagged, NAME)

    def export(self) -> None:
        treat.export.main(
            treat.export.Config(
                run=self.out / "adapter",
                out=self.out / "export",
                title="Miniature, treated",
                license="apache-2.0",
                base_model=f"miniature-{self.settings.base}",
                evaluation=self.out / "evaluation",
            )
        )

    # What stages share

    def detect(self, name: str, folder: str, number: int, more: Mapping[str, Any]) -> int | None:
        """Train on, from one of the shipped detectors: from nothing it would take an hour."""
        given = {
            "data": (self.out / folder,),
            "out": self.out / name,
            "init": DETECTORS / self.settings.starts[number],
            "seed": self.settings.seed + number,
        }
        settings = {**self.settings.detector, **more, **given}
        return detector.train.main(checked(detector.train.Config, settings))

    def treat(self, name: str, **changes: Any) -> int | None:
        return treat.train.main(self.treatment(name, **changes))

    def treatment(self, name: str, **changes: Any) -> Treatment:
        """The settings of one treatment: the demo's own, and what differs."""
        given = {
            "base": self.base,
            "prompts": self.out / "prompts/train.txt",
            "watch_prompts": self.out / "prompts/search.txt",
            "offline": self.out / "data/real",
            "out": self.out / name,
            "seed": self.settings.seed,
            "sampling_steps": self.settings.sampling_steps,
            "height": SIZE,
            "width": SIZE,
        }
        return checked(Treatment, {**self.settings.treat, **given, **changes})

    def rewarded(self) -> dict[str, Any]:
        """What an adapter's treatment has and a control's has not: detectors, and their refresh."""
        return {
            "detector": self.out / "detector",
            "second_detector": self.out / "second_detector",
            **self.settings.refresh,
            "annotator": (sys.executable, "-m", "miniature.label"),
            "refresh_data": (self.out / "data/train",),
        }

    def claim(self) -> None:
        """Take the folder, or go on in it; `UserError` if it holds something else."""
        note = self.out / "demo.json"
        said = json.loads(json.dumps(asdict(self.settings)))
        if self.out.exists() and not self.out.is_dir():
            raise UserError(f"{self.out} is a file: name a folder with --out.")
        if note.is_file():
            held = read_note(note)
            if held != said:
                other = held.get("base", self.settings.base)
                if other != self.settings.base:
                    raise UserError(
                        f"{self.out} holds a demo of {other}: add --base {other}, or give another "
                        "--out."
                    )
                raise UserError(f"{self.out} holds a demo with other numbers: give another --out.")
        elif self.out.exists() and any(self.out.iterdir()):
            raise UserError(f"{self.out} is not empty and holds no demo: give another --out.")
        self.out.mkdir(parents=True, exist_ok=True)
        write_atomic(note, (json.dumps(said, indent=2) + "\n").encode())

    def run(self, stage: Callable[[], int | None]) -> int | None:
        """Run a stage unless it is finished; its seconds add up over interruptions."""
        name = stage.__name__
        seconds = self.seconds()
        if seconds.get(name, {}).get("finished"):
            return None
        print(f"\n== {name.replace('_', ' ')}", file=sys.stderr)
        begun = time.monotonic()
        code = stage()
        spent = seconds.get(name, {}).get("seconds", 0.0) + time.monotonic() - begun
        seconds[name] = {"seconds": round(spent, 1), "finished": not code}
        write_atomic(self.out / "stages.json", (json.dumps(seconds, indent=2) + "\n").encode())
        return code

    def seconds(self) -> dict[str, dict[str, Any]]:
        path = self.out / "stages.json"
        return json.loads(path.read_text()) if path.is_file() else {}

    def summary(self) -> dict[str, Any]:
        """The figures of all stages in one file."""
        evaluated = json.loads((self.out / "evaluation/summary.json").read_text())
        measured = json.loads((self.out / "detector.json").read_text())
        arms = {n: pick(evaluated["arms"][n], FIGURES) for n in ("base", "control", "adapter")}
        drawn, renders = measured["generator"][self.settings.base], measured["source"]["real"]
        summary = {
            **arms,
            "detector": {
                **pick(drawn, ("pixel_ap", "iou")),
                **pick(renders, ("false_positive_images",)),
            },
            "seconds": round(sum(one["seconds"] for one in self.seconds().values()), 1),
            "adapter_file": str(self.out / "export" / WEIGHTS),
            "report": str(self.out / "evaluation/report.html"),
        }
        text = json.dumps(plain(summary), indent=2, allow_nan=False) + "\n"
        write_atomic(self.out / "summary.json", text.encode())
        return summary


def checked(cls: type[BaseModel], values: Mapping[str, Any]) -> Any:
    return cls.model_validate(dict(values))


def pick(values: Mapping[str, Any], names: Iterable[str]) -> dict[str, Any]:
    return {name: values.get(name) for name in names}


def table(summary: Mapping[str, Any]) -> Table:
    """The verdict: a row for every arm."""
    shown = Table(title=f"Judged by {NAME}")
    shown.add_column("")
    for name in FIGURES:
        shown.add_column(name.replace("_", "\n"), justify="right")
    for arm in ("base", "control", "adapter"):
        shown.add_row(arm, *(cell(name, summary[arm][name]) for name in FIGURES))
    return shown


def cell(name: str, value: float | None) -> str:
    if value is None:
        return "-"
    if name == "n":
        return str(value)
    percent = name in ("artifact_frequency", "artifact_area", "attribute_match")
    return f"{value:.1%}" if percent else f"{value:.4g}"


def read_note(path: Path) -> dict[str, Any]:
    """What a demo's folder says of its settings; `UserError` where it is damaged."""
    try:
        held = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is damaged: give another --out.") from error
    if not isinstance(held, dict):
        raise UserError(f"{path} is damaged: give another --out.")
    return held
