"""Counts against figures by hand: products, what lives at once, what was freed."""

import pytest
import torch
from torch import nn

from core.counting import DryRun, Tally, norms_in_float32


def test_a_product_and_what_lives_beside_it():
    dry, costs = DryRun(), {}
    with dry.counting():
        a, b = torch.empty(20, 30), torch.empty(30, 40)
        with dry.tally.work(costs, "product"):
            a @ b
        with dry.tally.work(costs, "sum"):
            a + 1
    own = 4 * (20 * 30 + 30 * 40)
    assert costs["product"] == (own + 4 * 20 * 40, 2 * 20 * 30 * 40)
    assert costs["sum"] == (own + 4 * 20 * 30, 0)  # the product was freed before


def test_a_product_that_is_added_in_place_counts():
    dry, costs = DryRun(), {}
    with dry.counting():
        total, a, b = torch.empty(4, 6), torch.empty(4, 5), torch.empty(5, 6)
        with dry.tally.work(costs, "product"):
            total.addmm_(a, b)
    assert costs["product"].flops == 2 * 4 * 5 * 6


def test_work_of_one_name_adds_up_but_for_the_peak():
    dry, costs = DryRun(), {}
    with dry.counting():
        for size in (10, 5):
            with dry.tally.work(costs, "products"):
                torch.empty(size, size) @ torch.empty(size, size)
    assert costs["products"] == (3 * 4 * 10 * 10, 2 * (10**3 + 5**3))


def test_nothing_is_computed_and_a_view_costs_nothing():
    dry = DryRun()
    with dry.counting():
        large = torch.empty(2**20, 2**20)  # 4 TiB
        view = large[1:].T
        assert view.shape == (2**20, 2**20 - 1)
    assert dry.tally.live == 2**42
    del large, view
    assert dry.tally.live == 0


def test_weights_from_the_meta_device():
    with torch.device("meta"):
        module = nn.BatchNorm1d(6)
    dry = DryRun()
    with dry.counting():
        assert dry.materialise(module) == 4 * 6 * 4 + 8  # and the number of batches
        assert module(torch.empty(3, 6)).shape == (3, 6)
    assert module.weight.requires_grad and module.weight.device.type == "cpu"


def test_the_same_on_real_tensors():
    with Tally() as real:
        costs = {}
        with real.work(costs, "graph"):
            x = torch.ones(50, 50, requires_grad=True)
            (x @ x).sin().sum().backward()
    dry, counted = DryRun(), {}
    with dry.counting(), dry.tally.work(counted, "graph"):
        y = torch.ones(50, 50, requires_grad=True)
        (y @ y).sin().sum().backward()
    assert counted == costs and counted["graph"].flops == 3 * 2 * 50**3
    assert x.grad is not None and x.grad.sum() == pytest.approx(
        2 * 50**3 * torch.tensor(50.0).cos()
    )


def test_shared_weights_are_counted_once():
    with torch.device("meta"):
        tied = nn.ModuleList([nn.Linear(4, 4, bias=False) for _ in range(2)])
    tied[1].weight = tied[0].weight
    dry = DryRun()
    with dry.counting():
        assert dry.materialise(tied) == 4 * 4 * 4
    assert tied[1].weight is tied[0].weight


@pytest.mark.parametrize("norm", [nn.GroupNorm(2, 4), nn.LayerNorm(4)])
def test_norms_are_counted_in_fp32_and_nothing_else_is(norm):
    layers = nn.Sequential(nn.Linear(4, 4), norm).bfloat16()
    x = torch.zeros(1, 4, dtype=torch.bfloat16)
    assert layers(x).dtype == torch.bfloat16
    norms_in_float32(layers)
    assert layers(x).dtype == norm.weight.dtype == torch.float32
    assert layers[0].weight.dtype == layers[0](x).dtype == torch.bfloat16


def test_a_question_about_contents_is_answered_with_no():
    with DryRun().counting():
        assert not torch.ones(3).all() and torch.ones(()).item() == 0
