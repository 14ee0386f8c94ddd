"""One treat step beside one of the DiffDoctor release: CPU seconds, memory, and the gradient.

    python -m benchmarks.against_release --release CHECKOUT --packages DIR --json FILE

The release is `ali-vilab/DiffDoctor`; DIR holds what its script imports and this project does not
(`pip install --no-deps --target DIR einops ml_collections inflect jaraco.functools more_itertools
typeguard contextlib2 six`). Both open the same random FLUX of `benchmarks.peer_worlds`, the same
LoRA (rank 8; queries, keys, values and outputs) and the same detector at 512 pixels: 1024 pixels,
four steps, one image, fp32, one thread, no offline term on either side. Theirs is its script's own
training loop (`benchmarks.release_step`), which carries gradient through all four steps and keeps
only what enters each block; ours is `treat.train.learn` with the update (`benchmarks.our_step`).
Each variant has a process of its own; how it is measured: `benchmarks.footprint`.

The release takes its loss on the detector's 512-pixel grid, this project on the image's: the
gradient is compared as it comes and, besides, with ours on that grid too.

Legend: T sampling steps, K of them learn.
"""

import json
import tempfile
from pathlib import Path

from pydantic import Field

import core.config
from benchmarks import peer_worlds
from benchmarks.side_by_side import Rival, Task, Variant, compare, report
from core.run import plain
from core.storage import write_atomic

LEAN = {"checkpoint_blocks": True, "checkpoint_decoder": True}
TWICE = {"recompute": True, **LEAN, "two_pass_decode": True}
COMPILED = {"compile_blocks": True}
VARIANTS = (
    Variant("K=4 lean", 4, LEAN, cpu=1.10, memory=0.40),
    Variant("K=4 lean, drawn twice", 4, TWICE),
    Variant("K=4 fast", 4, {}, cpu=0.75),
    Variant("K=4 fast, compiled", 4, COMPILED, cpu=0.75),
    Variant("K=1 lean", 1, LEAN, cpu=0.60, memory=0.40),
    Variant("K=1 lean, drawn twice", 1, TWICE),
    Variant("K=1 fast", 1, {}, cpu=0.50),
    Variant("K=1 fast, compiled", 1, COMPILED, cpu=0.50),
)
"""`lean` keeps of each block what enters it; `drawn twice`: only what enters each step;
`compiled`: by a C++ compiler, which the first, untimed step waits for."""
RANK = 8
FILES = ("train_diffusion_model.py", "config/settings.py", "src/prompts.py", "src/segformer.py")
IMPORTED = ("einops", "ml_collections", "inflect", "absl", "torchvision")
CURE = "`git clone https://github.com/ali-vilab/DiffDoctor`, and name that folder."


class Config(core.config.Config):
    """Where the release is, and how often a step is taken."""

    release: Path
    """A checkout of ali-vilab/DiffDoctor; its checkpoints are not needed."""
    packages: tuple[Path, ...] = ()
    """Folders with what its script imports."""
    repeats: int = Field(5, ge=0)
    """Timed steps of a variant, after one that is not; 0: only what is held is measured."""
    json_file: core.config.JsonFile = None
    """Also write the figures here."""


def main(config: Config) -> None:
    packages = tuple(path.resolve() for path in config.packages)
    peer = Rival("release", "benchmarks.release_step", config.release.resolve(), packages)
    peer.check(FILES, IMPORTED, CURE)
    with tempfile.TemporaryDirectory() as folder:
        top = Path(folder)
        task = Task(
            folder=top / "runs",
            base=peer_worlds.save_flux(top / "base"),
            lora=peer_worlds.save_lora(top / "lora", "flux", RANK),
            detector=peer_worlds.save_detector(top / "detector"),
            side=1024,  # the script knows no other
            steps=4,
            last=4,
            rank=RANK,
            repeats=config.repeats,
        )
        further = {"K=4 fast, loss on the detector's grid": {"detector_grid": True}}
        found = compare(peer, task, VARIANTS, further)
    print(report(peer.name, found))
    if config.json_file:
        write_atomic(config.json_file, (json.dumps(plain(found), indent=2) + "\n").encode())


if __name__ == "__main__":
    core.config.run_program(main, Config, prog="python -m benchmarks.against_release")
