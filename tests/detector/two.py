"""What each process does in `test_parallel`: a training whose gradients go into a file."""

import json

import safetensors.torch
import torch

from core.processes import several, this_process
from core.run import Run
from detector import train
from tests.forked import serve


def main(settings: str, out: str, stop: int) -> int:
    torch.set_num_threads(1)
    config = train.Config.model_validate(json.loads(settings))
    rank = this_process().process_index if several() else 0
    initial, clip, learners, seen = train._initial, torch.nn.utils.clip_grad_norm_, [], {}

    def own_start(*given):
        """As if every process had drawn a start of its own: the broadcast must make them one."""
        detector = initial(*given)
        for weights in detector.parameters():
            weights.data += 0.01 * rank
        learners.append(detector)
        return detector

    def noted(parameters, largest):
        parameters = list(parameters)
        flat = torch.cat([p.grad.flatten() for p in parameters if p.grad is not None])
        seen[f"gradient {len(seen)}"] = flat.clone()
        return clip(parameters, largest)

    train._initial, torch.nn.utils.clip_grad_norm_ = own_start, noted
    if stop and rank:
        Run.interrupted = property(lambda _: len(seen) >= stop)
    code = train.main(config)
    state = {name: t.contiguous() for name, t in learners[0].state_dict().items()}
    safetensors.torch.save_file({**state, **seen}, f"{out}-rank{rank}.safetensors")
    return code or 0


if __name__ == "__main__":
    serve(main, patience=300)
