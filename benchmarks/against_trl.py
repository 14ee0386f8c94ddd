"""One treat step beside one of TRL's AlignPropTrainer: CPU seconds, memory, and the gradient.

    python -m benchmarks.against_trl --trl DIR --json FILE

TRL is 0.23.1, the last with this trainer; DIR holds it and what it imports besides
(`pip install --no-deps --target DIR trl==0.23.1 datasets pandas dill xxhash multiprocess
python-dateutil`). Both open the same random SD 1.x of `benchmarks.peer_worlds`, the same LoRA (rank
4; queries, keys, values and outputs) and the same reward, this project's artifact loss: 256 pixels,
20 DDIM steps of which the last five learn, guidance 7.5, one image, fp32, one thread. Theirs is the
trainer's own `step` (`benchmarks.trl_step`), which computes each network call that learns twice;
ours is `treat.train.learn` with the update (`benchmarks.our_step`), without the offline term, which
TRL has not. Each variant has a process of its own; how it is measured: `benchmarks.footprint`.

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

LEAN = {"recompute": True, "checkpoint_decoder": True}
VARIANTS = (
    Variant("K=5 lean", 5, LEAN, cpu=1.0, memory=0.55),
    Variant("K=5 lean, blocks checkpointed", 5, {**LEAN, "checkpoint_blocks": True}),
    Variant("K=5 graphs kept, blocks checkpointed", 5,
            {**LEAN, "recompute": False, "checkpoint_blocks": True}),
    Variant("K=5 fast", 5, {}, cpu=0.85),
)  # fmt: skip
RANK = 4
FILES = ("trl/trainer/alignprop_trainer.py", "trl/models/modeling_sd_base.py")
IMPORTED = ("datasets", "pandas")
CURE = "`pip install --no-deps --target DIR trl==0.23.1`, the last with AlignProp, and name DIR."


class Config(core.config.Config):
    """Where TRL is, and how often a step is taken."""

    trl: Path
    """Folder that holds the package `trl`."""
    packages: tuple[Path, ...] = ()
    """Further folders with what it imports."""
    repeats: int = Field(5, ge=0)
    """Timed steps of a variant, after one that is not; 0: only what is held is measured."""
    json_file: core.config.JsonFile = None
    """Also write the figures here."""


def main(config: Config) -> None:
    packages = tuple(path.resolve() for path in (config.trl, *config.packages))
    peer = Rival("TRL", "benchmarks.trl_step", config.trl.resolve(), packages)
    peer.check(FILES, IMPORTED, CURE)
    with tempfile.TemporaryDirectory() as folder:
        top = Path(folder)
        task = Task(
            folder=top / "runs",
            base=peer_worlds.save_sd(top / "base"),
            lora=peer_worlds.save_lora(top / "lora", "sd", RANK),
            detector=peer_worlds.save_detector(top / "detector"),
            side=256,
            steps=20,
            last=5,
            rank=RANK,
            repeats=config.repeats,
        )
        found = compare(peer, task, VARIANTS, {})
    print(report(peer.name, found))
    if config.json_file:
        write_atomic(config.json_file, (json.dumps(plain(found), indent=2) + "\n").encode())


if __name__ == "__main__":
    core.config.run_program(main, Config, prog="python -m benchmarks.against_trl")
