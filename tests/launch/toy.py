"""A program as a trainer knows them, in a second: figures, checkpoints, pauses, faults on demand.

Run as `python -m tests.launch.toy --config FILE`; also a method of the service in the tests.
"""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

from pydantic import Field

import core.config
from core.errors import UserError
from core.run import PAUSED, Run
from core.storage import append_line
from core.wishes import WISHES

METHOD = {
    "does": "counts",
    "command": (),
    "config": "tests.launch.toy",
    "module": "tests.launch.toy",
    "inputs": {"base": "anything", "prompts": "lines", "data": "images", "other": "another run"},
    "words": frozenset({"word", "fault"}),
    "training_file": "prompts",
    "model": "base",
    "needs_training_file": False,
    "results": ("summary.json", "made/*"),
    "total": "steps",
    "wishes": WISHES,
    "several": True,
}


HELD_OUT = {
    "threshold": 0.5,
    "groups": {
        "category": {
            "<hand>": {"images": 3, "pixel_ap": 0.75, "f1": None},
            "face": {"images": 1, "pixel_ap": 0.5, "f1": 0.25},
        },
        "overall": {"all": {"images": 4, "pixel_ap": 0.7, "f1": 0.2}},
    },
    "reliability": [
        {"low": 0, "high": 0.1, "pixels": 900, "predicted": 0.04, "labelled": 0.02},
        {"low": 0.5, "high": 0.6, "pixels": 30, "predicted": 0.55, "labelled": 0.6},
    ],
    "worst": [
        {"key": "a", "prompt": "left <hand>", "category": "<hand>", "source": "human",
         "error": 0.2, "missed": 0.1, "false_alarm": 0.0},
    ],
}  # fmt: skip


class Config(core.config.Config):
    """Settings of the toy."""

    base: str = ""
    prompts: Path | None = None
    data: tuple[Path, ...] = ()
    other: Path | None = None
    out: Path
    steps: int = Field(5, ge=1)
    seconds: float = 0.05
    """Of each step."""
    fault: str = ""
    """`error`, `crash`, `kill`, `lie` (exit code 0 and nothing made), `deaf`, `half deaf` (to the
    first word), `orphan`."""
    word: str = ""
    gloo: bool = False
    """Write down what all processes of this program add up to, by torch's backend for CPUs."""
    pictures: bool = False
    """Draw what a treatment draws, at the first and the last step, and what a detector's training
    leaves."""
    command: tuple[str, ...] = ()
    """Never to be set over HTTP."""


def main(config: Config) -> int:
    if config.fault == "error":
        raise UserError("the toy is broken; buy another.")
    if config.fault == "deaf":
        for number in (signal.SIGTERM, signal.SIGUSR1):
            signal.signal(number, signal.SIG_IGN)
        time.sleep(60)
    if config.fault == "half deaf":
        signal.signal(signal.SIGUSR1, lambda *_: heard.set())
        (heard := threading.Event()).wait(60)
    if config.fault == "kill":
        os.kill(os.getppid(), signal.SIGKILL)
        time.sleep(60)
    if config.fault == "lie":
        return 0
    main_process = os.environ.get("RANK", "0") == "0"
    with Run.start(config, config.out, "toy", main_process, may_change={"steps"}) as run:
        if config.gloo:
            add_up(config.out)
        if not main_process:
            return follow(run, config)
        if config.fault == "orphan":
            child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(300)"])
            (run.folder / "orphan").write_text(str(child.pid))
        done = newest(run.checkpoints)
        run.event("info", f"goes on after step {done}", saw=os.environ.get("CUDA_VISIBLE_DEVICES"))
        for step in range(done + 1, config.steps + 1):
            time.sleep(config.seconds)
            line = {"step": step, "time": time.time(), "loss": 1 / step}
            append_line(run.folder / "metrics.jsonl", json.dumps(line))  # `log` would open torch
            (run.checkpoints / f"step-{step:08d}").mkdir()
            if config.fault == "crash":
                os._exit(7)
            wishes = run.wishes()
            if config.pictures and (step in (1, config.steps) or "sample" in wishes):
                draw(run, 0 if step == 1 else step)
            if run.interrupted:
                return PAUSED
        (run.folder / "made").mkdir(exist_ok=True)
        (run.folder / "made/thing.txt").write_text(json.dumps({"steps": config.steps}))
        run.summary({"steps": config.steps})
    return 0


def add_up(out: Path) -> None:
    import torch
    from accelerate.utils import reduce

    from core.processes import this_process

    state = this_process()
    found = reduce(torch.tensor([1.0, state.process_index]), "sum").tolist()
    said = {"added": found, "backend": state.backend, "pid": os.getpid()}
    (out / f"rank-{state.process_index}.json").write_text(json.dumps(said))


def follow(run: Run, config: Config) -> int:
    """Another process than the main one: it steps as long, and writes nothing."""
    for _ in range(config.steps):
        time.sleep(config.seconds)
        if run.interrupted:
            return PAUSED
    return 0


def draw(run: Run, step: int) -> None:
    from PIL import Image

    look = run.folder / "watched" / f"step-{step:08d}"
    (look / "maps").mkdir(parents=True, exist_ok=True)
    half = Image.new("L", (48, 48))
    half.paste(153, (0, 0, 24, 48))  # 0.6, and 0 at the right
    for i in range(2):
        Image.new("RGB", (48, 48), (90 * i, 5 * step % 256, 120)).save(look / f"{i:05d}.png")
        half.save(look / f"maps/{i:05d}.png")
    lines = [json.dumps({"prompt": f"{one} <hand>"}) + "\n" for one in ("left", "right")]
    (run.folder / "watched/prompts.jsonl").write_text("".join(lines))
    Image.new("RGB", (200, 100), "gray").save(run.pictures / f"step-{step:08d}.png")
    (run.folder / "held_out").mkdir(exist_ok=True)
    for kind in ("image", "label", "map"):
        half.convert("RGB" if kind == "image" else "L").save(
            run.folder / f"held_out/00000-{kind}.png"
        )
    (run.folder / "held_out.json").write_text(json.dumps(HELD_OUT))
    run.event("info", f"drew step {step}")


def newest(folder: Path) -> int:
    return max((int(path.name[5:]) for path in folder.glob("step-*")), default=0)


if __name__ == "__main__":
    core.config.run_program(main, Config)
