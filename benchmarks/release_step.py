"""A task in, one step of the DiffDoctor release measured, and its gradient, out; one process.

    python -m benchmarks.release_step --config task.yaml

Nothing of the release is repeated or changed here: its script's own `main` runs, told by its
settings which pipeline, LoRA and detector to open. Prompts are asked of a function of ours (it
takes one by name), and a step is what lies between two questions: text encoders, all T steps with
gradient, decoder, detector, loss, backward, clip, AdamW. Its gradient is seen by torch's hook on
optimizers, after a clip that is set too high to clip. What its script imports and this run never
calls (wandb, hpsv2) is an empty module.
"""

import importlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook

import core.config
from benchmarks.footprint import Footprint
from benchmarks.peer_worlds import PROMPT
from benchmarks.side_by_side import Task, noise_seed, write, write_gradient
from core.errors import UserError
from treat.lora_files.names import WEIGHTS

SCRIPT = "train_diffusion_model"
UNUSED = {
    "wandb": {"run": SimpleNamespace(name="run"), "Image": None},
    "hpsv2": {},
    "hpsv2.src": {},
    "hpsv2.src.open_clip": {"create_model_and_transforms": None, "get_tokenizer": None},
}
SETTINGS = """import runpy

def get_config(name):
    config = runpy.run_path({settings!r})["get_config"](name)
    config.load_from_lora = {lora!r}
    return config
"""
"""A settings file over the release's: its command line cannot fill in what is None there."""
EVERY_GRADIENT = 1e9
"""A clip that nothing reaches."""


class Enough(Exception):
    """All steps are taken."""


class Asker:
    """Gives the release its prompts, its noise and its end."""

    def __init__(self, repeats: int):
        self.repeats, self.asked = repeats, 0
        self.footprint = Footprint()

    def __call__(self) -> tuple[str, dict[str, Any]]:
        if self.asked == 0:
            self.footprint.begin()
        else:
            self.footprint.lap()
        if self.asked > self.repeats:
            raise Enough
        self.asked += 1
        torch.manual_seed(noise_seed(self.asked))
        return PROMPT, {}


def main(task: Task) -> None:
    if task.peer is None:
        raise UserError("Name the release's folder as peer.")
    os.environ["CUDA_VISIBLE_DEVICES"] = "-1"  # its settings count the names in it
    stand_in()
    sys.path += [str(task.peer), str(task.peer / "src")]  # as it adds them where it stands
    prompts, script = importlib.import_module("src.prompts"), importlib.import_module(SCRIPT)
    asker, found = Asker(task.repeats), {}
    vars(prompts).update(asked=asker, quiet=lambda: (PROMPT, {}))

    def seen(optimizer: Any, *_: Any) -> None:
        if asker.asked == 1:
            grads = [w.grad for group in optimizer.param_groups for w in group["params"]]
            write_gradient(task, grads)
            found["norm"] = torch.cat([grad.flatten() for grad in grads]).norm().item()

    register_optimizer_step_pre_hook(seen)
    sys.argv = [SCRIPT, *words(task, task.peer)]
    try:
        script.main()
    except Enough:
        write(task, asker.footprint.found() | found)
    else:
        raise UserError("The release's script ended before its steps were taken.")


def stand_in() -> None:
    """Modules that are imported and never called."""
    for name, values in UNUSED.items():
        module = ModuleType(name)
        vars(module).update(values)
        sys.modules[name] = module


def words(task: Task, release: Path) -> Sequence[str]:
    """The release's settings for its detector, with ours in the places it leaves open."""
    changed = {
        "pipe_type": "fluxSchnell",
        "pretrained.model": task.base,
        "segformer_path": task.detector,
        "resume_from_ad": task.detector / "weights.bin",
        "steps": task.steps,
        "mixed_precision": "no",
        "prompt_fn": "asked",
        "eval_prompt_fn": "quiet",
        "max_vis_images": 1,
        "visualize_train": False,
        "visualize_eval": False,
        "logdir": task.folder / "logs",
        "num_epochs": 2,
        "train.lora_rank": task.rank,
        "train.gradient_accumulation_steps": 1,
        "train.data_loader_iterations": task.repeats + 2,
        "train.max_grad_norm": EVERY_GRADIENT,
    }
    theirs, lora = release / "config/settings.py", task.lora / WEIGHTS
    settings = task.folder / "settings.py"
    settings.write_text(SETTINGS.format(settings=str(theirs), lora=str(lora)))
    own = [f"--config.{name}={value}" for name, value in changed.items()]
    return [f"--config={settings}:ad", *own]


if __name__ == "__main__":
    core.config.run_program(main, Task, prog="python -m benchmarks.release_step")
