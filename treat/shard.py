"""The frozen network shared out over the processes: each holds its part of every block's weights.

FSDP2 (`torch.distributed.fsdp.fully_shard`) gathers a block while it computes. The adapters stay
whole on every process; `treat.update` adds up their gradients. accelerate's configuration asks for
it (`accelerate_configs/fsdp2.yaml`); every process then has to take part whenever the network does.
"""

import os

from accelerate.utils import parse_flag_from_env
from torch import nn
from torch.distributed.fsdp import fully_shard

from base_models.names import Quantisation
from core.errors import UserError
from core.processes import this_process
from treat.lora import lora_parameters


def sharded() -> bool:
    """Whether the network is shared out."""
    return parse_flag_from_env("ACCELERATE_USE_FSDP") and this_process().num_processes > 1


def check_sharding(kind: Quantisation, compiled: bool) -> None:
    """Raise `UserError` for what cannot be shared out."""
    if not sharded():
        return
    if os.environ.get("FSDP_VERSION", "1") != "2":
        raise UserError(
            "FSDP 1 cannot leave the adapters whole: set fsdp_version to 2, as in "
            "accelerate_configs/fsdp2.yaml."
        )
    if kind != "no":
        raise UserError(
            f"{kind} weights cannot be shared out by FSDP: set quantise to no, or launch with "
            "accelerate_configs/many_gpus.yaml."
        )
    if compiled:
        raise UserError(
            "FSDP gathers the weights of a block around its computation, which compiled blocks "
            "were not tried with: leave compile_blocks out, or launch with "
            "accelerate_configs/many_gpus.yaml."
        )


def shard(network: nn.Module) -> None:
    """Share out a network that carries its adapters already, block by block; in place."""
    whole = set(lora_parameters(network))
    for name, child in network.named_children():
        if "block" in name:
            for block in child if isinstance(child, nn.ModuleList) else [child]:
                fully_shard(block, ignored_params=whole)
    fully_shard(network, ignored_params=whole)
