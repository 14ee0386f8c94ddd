"""Counts against figures by hand: products, what lives at once, what was freed."""

import pytest
import torch

from core.counting import Counter, Tally


def test_a_product_and_what_lives_beside_it():
    counter, costs = Counter(), {}
    with counter.counting():
        a, b = torch.empty(20, 30), torch.empty(30, 40)
        with counter.tally.work(costs, "product"):
            a @ b
        with counter.tally.work(costs, "sum"):
            a + 1
    own = 4 * (20 * 30 + 30 * 40)
    assert costs["product"] == (own + 4 * 20 * 40, 2 * 20 * 30 * 40)
    assert costs["sum"] == (own + 4 * 20 * 30, 0)  # the product was freed before


def test_work_of_one_name_adds_up_but_for_the_peak():
    counter, costs = Counter(), {}
    with counter.counting():
        for size in (10, 5):
            with counter.tally.work(costs, "products"):
                torch.empty(size, size) @ torch.empty(size, size)
    assert costs["products"] == (3 * 4 * 10 * 10, 2 * (10**3 + 5**3))


def test_nothing_is_computed_and_a_view_costs_nothing():
    counter = Counter()
    with counter.counting():
        large = torch.empty(2**20, 2**20)  # 4 TiB
        large[1:].T.contiguous  # noqa: B018
    assert counter.tally.live == 2**42
    del large
    assert counter.tally.live == 0


def test_weights_from_the_meta_device():
    with torch.device("meta"):
        module = torch.nn.BatchNorm1d(6)
    counter = Counter()
    with counter.counting():
        assert counter.imagine(module) == 4 * 6 * 4 + 8  # and the number of batches
        assert module(torch.empty(3, 6)).shape == (3, 6)
    assert module.weight.requires_grad and module.weight.device.type == "cpu"


def test_the_same_on_real_tensors():
    with Tally() as real:
        costs = {}
        with real.work(costs, "graph"):
            x = torch.ones(50, 50, requires_grad=True)
            (x @ x).sin().sum().backward()
    counter, counted = Counter(), {}
    with counter.counting(), counter.tally.work(counted, "graph"):
        y = torch.ones(50, 50, requires_grad=True)
        (y @ y).sin().sum().backward()
    assert counted == costs and counted["graph"].flops == 3 * 2 * 50**3
    assert x.grad is not None and x.grad.sum() == pytest.approx(
        2 * 50**3 * torch.tensor(50.0).cos()
    )
