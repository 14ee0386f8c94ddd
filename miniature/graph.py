"""One update of a base as a CUDA graph: recorded once, then replayed at every step.

A network this small keeps a GPU waiting for the host, which launches some thousand kernels an
update; a replay is one launch.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from core.contracts import Latents

Work = Callable[[Latents, dict[str, Tensor], torch.Generator], Tensor]
"""Latents, what their captions say, the generator: an update is made; its loss."""
WARM = 11
"""Updates made as they come, before one is recorded: by then every library has its workspace."""


class GraphedUpdate:
    """`work`, on inputs of the same shapes at every call, by optimizers whose rate is a tensor.

    Everything that `work` reads must lie on the device. Of the generator only the seed counts.
    """

    def __init__(self, work: Work, optimizers: list[torch.optim.Optimizer], place: torch.device):
        self.work = work
        self.calls = 0
        self.generator = torch.Generator(place)
        self.stream = torch.cuda.Stream(place)
        self.graph = torch.cuda.CUDAGraph()
        self.graph.register_generator_state(self.generator)
        for group in (group for optimizer in optimizers for group in optimizer.param_groups):
            group["lr"] = torch.tensor(float(group["lr"]), device=place)
            if "capturable" in group:
                group["capturable"] = True

    def __call__(self, clean: Latents, said: dict[str, Tensor], seed: int) -> Tensor:
        self.generator.manual_seed(seed)
        self.calls += 1
        if self.calls <= WARM:
            return self.aside(clean, said)
        if self.calls == WARM + 1:
            self.clean, self.said = clean.clone(), {name: t.clone() for name, t in said.items()}
            torch.cuda.empty_cache()
            with torch.cuda.graph(self.graph):
                self.loss = self.work(self.clean, self.said, self.generator).detach()
            self.generator.manual_seed(seed)
        self.clean.copy_(clean)
        for name, values in said.items():
            self.said[name].copy_(values)
        self.graph.replay()
        return self.loss

    def aside(self, clean: Latents, said: dict[str, Tensor]) -> Tensor:
        """On a stream of its own, as the recording will be."""
        self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream):
            loss = self.work(clean, said, self.generator).detach()
        torch.cuda.current_stream().wait_stream(self.stream)
        return loss
