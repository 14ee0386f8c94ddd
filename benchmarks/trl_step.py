"""A task in, one step of TRL's AlignPropTrainer measured, and its gradient, out; one process.

    python -m benchmarks.trl_step --config task.yaml

Nothing of TRL is repeated or changed here: its pipeline wrapper opens the base, and its trainer's
own `step` runs. Prompts come from a function of ours, which also sets the noise's seed; the reward
is the negative of this project's artifact loss, so that both sides lower the same. The adapters,
whose rank and places the wrapper decides, get the weights that ours have. Its gradient is seen by
torch's hook on optimizers, after a clip that is set too high to clip.
"""

import importlib
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_pre_hook

import core.config
from benchmarks.footprint import Footprint
from benchmarks.peer_worlds import PROMPT, open_detector
from benchmarks.side_by_side import Task, noise_seed, write, write_gradient
from core.contracts import Images
from core.processes import this_process
from treat.adapter import read_adapter
from treat.lora import load_lora_state
from treat.terms import RewardTerm

EVERY_GRADIENT = 1e9
"""A clip that nothing reaches."""
GUIDANCE = 7.5
"""The pipeline's default, which `base_models.sd` has too; TRL's is 5."""


def main(task: Task) -> None:
    step, found, footprint = 0, {}, Footprint()

    def asked() -> tuple[str, dict[str, Any]]:
        torch.manual_seed(noise_seed(step))
        return PROMPT, {}

    def seen(optimizer: Any, *_: Any) -> None:
        if step == 1:
            # It is given every weight of the network, the frozen ones too.
            weights = [w for group in optimizer.param_groups for w in group["params"]]
            grads = [weight.grad for weight in weights if weight.requires_grad]
            write_gradient(task, grads)
            found["norm"] = torch.cat([grad.flatten() for grad in grads]).norm().item()

    trainer = open_trainer(task, asked)
    register_optimizer_step_pre_hook(seen)
    footprint.begin()
    for step in range(1, task.repeats + 2):
        trainer.step(0, step)
        footprint.lap()
    write(task, footprint.found() | found)


def open_trainer(task: Task, prompts: Any) -> Any:
    this_process()  # accelerate's loggers want it
    models: Any = importlib.import_module("trl.models.modeling_sd_base")
    settings: Any = importlib.import_module("trl.trainer.alignprop_config")
    trainers: Any = importlib.import_module("trl.trainer.alignprop_trainer")
    pipeline = models.DefaultDDPOStableDiffusionPipeline(str(task.base), use_lora=True)
    config = settings.AlignPropConfig(
        mixed_precision="no",
        sample_num_steps=task.steps,
        sample_eta=0.0,
        sample_guidance_scale=GUIDANCE,
        train_batch_size=1,
        train_learning_rate=1e-4,
        train_max_grad_norm=EVERY_GRADIENT,
        truncated_backprop_rand=False,
        truncated_backprop_timestep=task.steps - task.last,
    )
    term = RewardTerm(1.0, "threshold", 0.1, open_detector(task.detector))

    def reward(images: Images, *_: Any) -> tuple[Tensor, dict[str, Any]]:
        return -term(images)[None], {}

    trainer = trainers.AlignPropTrainer(config, reward, prompts, pipeline)
    load_lora_state(trainer.sd_pipeline.unet, read_adapter(task.lora).tensors)
    return trainer


if __name__ == "__main__":
    core.config.run_program(main, Task, prog="python -m benchmarks.trl_step")
