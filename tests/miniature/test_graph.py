"""A recorded update makes the same steps as one that is launched kernel by kernel."""

import pytest
import torch
from torch import nn

from miniature.flow import optimizers
from miniature.graph import WARM, GraphedUpdate
from miniature.training import set_rate

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="records on a CUDA GPU")


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Linear(8, 8) for _ in range(2))
        self.last = nn.Linear(8, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = block(x).relu()
        return self.last(x)


def train(recorded: bool) -> list[float]:
    torch.manual_seed(0)
    place = torch.device("cuda")
    network = Small().to(place)
    own = optimizers(network, 1e-2)

    def work(clean: torch.Tensor, said: dict, g: torch.Generator) -> torch.Tensor:
        for optimizer in own:
            optimizer.zero_grad()
        noise = torch.randn(clean.shape, generator=g, device=g.device)
        loss = (network(clean + noise) - said["target"]).square().mean()
        loss.backward()
        for optimizer in own:
            optimizer.step()
        return loss.detach()

    update = GraphedUpdate(work, own, place) if recorded else None
    losses = []
    for step in range(2 * WARM):
        for optimizer in own:
            set_rate(optimizer, 1e-2 / (step + 1))
        clean = torch.full((4, 8), 0.1 * step, device=place)
        said = {"target": torch.full((4, 1), 0.5, device=place)}
        if update:
            losses.append(float(update(clean, said, step)))
        else:
            losses.append(float(work(clean, said, torch.Generator(place).manual_seed(step))))
    return losses


def test_recorded_updates_have_the_losses_of_launched_ones():
    assert train(recorded=True) == pytest.approx(train(recorded=False), rel=1e-4)
