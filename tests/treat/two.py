"""What each process does in `test_processes`: a treatment, then its adapter into a file."""

import sys
import time
from pathlib import Path

import safetensors.torch
import torch

from core.processes import this_process
from tests.treat.setting import config
from treat import train
from treat.lora import lora_state

HELD = "numbers held"
"""Of the frozen network, by this process."""


MENUS = {
    "redraws": {"sampling_steps": 4, "last": 3, "learning": "random", "redraws": 2,
                "sizes": ["32x16"], "lock_weight": 0},
    "chain": {"sampling_steps": 3, "last": 2, "lock_weight": 1.0, "lock_inside": 1.0,
              "checkpoint_blocks": True},
    "beside": {"sampling_steps": 2, "last": 1},
}  # fmt: skip


def main(world: str, out: str, menu: str, steps: str) -> None:
    torch.set_num_threads(1)
    place, networks, add_lora = this_process(), [], train.add_lora

    def add_own_lora(network, *rest):
        """As if every process had drawn a start of its own: the broadcast must make them one."""
        networks.append(add_lora(network, *rest))
        for name, weights in network.named_parameters():
            if "lora_A" in name:
                weights.data += place.process_index
        return network

    train.add_lora = add_own_lora
    if menu == "beside" and place.is_main_process:
        check = train.check
        train.check = lambda *given: (time.sleep(5), check(*given))  # the others come first
    accumulation = 2 // place.num_processes
    settings = {"steps": int(steps), "accumulation": accumulation, "picture_every": 2}
    settings["beside"] = Path(world) / "beside" if menu == "beside" else None
    train.main(config(Path(world), Path(out), **settings, **MENUS[menu]))
    parts = [getattr(weights, "to_local", lambda w=weights: w)() for weights in frozen(networks[0])]
    here = {**lora_state(networks[0]), HELD: torch.tensor(sum(part.numel() for part in parts))}
    safetensors.torch.save_file(here, f"{out}-rank{place.process_index}.safetensors")


def frozen(network):
    return [weights for weights in network.parameters() if not weights.requires_grad]


if __name__ == "__main__":
    main(*sys.argv[1:])
