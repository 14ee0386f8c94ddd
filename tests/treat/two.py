"""What each process does in `test_processes`: a treatment, then its adapter into a file."""

import time
from pathlib import Path

import safetensors.torch
import torch
import torch.utils.tensorboard  # noqa: F401 - what a run loads late, once for all processes

from core.processes import this_process
from tests.forked import serve
from tests.treat.setting import config
from treat import setup, train
from treat.lora import lora_state
from treat.update import Update

HELD = "numbers held"
"""Of the frozen network, by this process."""


MENUS = {
    "redraws": {"sampling_steps": 4, "last": 3, "learning": "random", "redraws": 2,
                "sizes": ["32x16"], "lock_weight": 0},
    "chain": {"sampling_steps": 3, "last": 2, "lock_weight": 1.0, "lock_inside": 1.0,
              "checkpoint_blocks": True},
    "beside": {"sampling_steps": 2, "last": 1},
    "gradient": {"sampling_steps": 3, "last": 2, "learning_rate": 1e-12, "weight_decay": 0},
}  # fmt: skip
"""`gradient`: at a rate that moves no weight, so that each step's gradient is at the same place."""
BEST = "best"
"""What this process holds of the exported step: step, score, lowest score, that look's images."""
GRADIENTS = "gradients"
"""Of every step of `gradient` before it is clipped, as the sum over all processes."""


def main(world: str, out: str, menu: str, steps: int, images: int) -> None:
    torch.set_num_threads(1)
    place, networks, add_lora = this_process(), [], setup.add_lora
    ledgers, open_ledger = [], train.open_ledger

    def add_own_lora(network, *rest):
        """As if every process had drawn a start of its own: the broadcast must make them one."""
        networks.append(add_lora(network, *rest))
        for name, weights in network.named_parameters():
            if "lora_A" in name:
                weights.data += place.process_index
        return network

    def open_own_ledger(*given):
        ledgers.append(open_ledger(*given))
        return ledgers[-1]

    setup.add_lora, train.open_ledger = add_own_lora, open_own_ledger
    if menu == "beside" and place.is_main_process:
        check = train.check
        train.check = lambda *given: (time.sleep(5), check(*given))  # the others come first
    here, gradients = images // place.num_processes, []
    settings = {"steps": steps, "accumulation": here, "picture_every": 2}
    settings["beside"] = Path(world) / "beside" if menu == "beside" else None
    if menu == "redraws":  # as many looks and images as a choice needs
        settings |= {"watch_prompts": Path(world) / "watched.txt", "watch_images": 16}
        settings |= {"watch_every": 1}
    if menu == "gradient":  # all at once: half of a batch against the whole of it
        gradients = keep_gradients()
        settings |= {"accumulation": 1, "batch": here, "start": Path(world) / "start"}
    train.main(config(Path(world), Path(out), **settings, **MENUS[menu]))
    parts = [getattr(weights, "to_local", lambda w=weights: w)() for weights in frozen(networks[0])]
    found = {**lora_state(networks[0]), HELD: torch.tensor(sum(part.numel() for part in parts))}
    best = ledgers[0].best
    found[BEST] = torch.tensor([best.step or 0, best.score, best.lowest, *best.each])
    if gradients:
        found[GRADIENTS] = torch.stack(gradients)
    safetensors.torch.save_file(found, f"{out}-rank{place.process_index}.safetensors")


def keep_gradients():
    """A list that every update from now on adds its gradient to."""
    step, kept = Update._step, []

    def kept_step(update, total):
        kept.append(total[: update.size].clone())
        return step(update, total)

    Update._step = kept_step
    return kept


def frozen(network):
    return [weights for weights in network.parameters() if not weights.requires_grad]


if __name__ == "__main__":
    serve(main, patience=60 * 30)
