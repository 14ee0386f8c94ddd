"""The estimates of signal and noise are unbiased, even where there is no signal."""

import pytest
import torch

from benchmarks.gradient_noise import noise_of
from core.seeds import generator


@pytest.mark.parametrize("size", [0.0, 3.0])
def test_signal_and_noise_are_found_in_the_mean(size):
    mean, weights, n = torch.full((50,), size / 50**0.5), 50, 4
    rows = [mean + torch.randn(n, weights, generator=generator(i)) for i in range(400)]
    found = [noise_of(one) for one in rows]
    signal = sum(one.signal for one in found) / len(found)
    assert signal == pytest.approx(size**2, abs=0.6)
    assert sum(one.noise for one in found) / len(found) == pytest.approx(weights, rel=0.03)
    naive = sum(one.mean(dim=0).square().sum().item() for one in rows) / len(rows)
    assert naive > size**2 + 10  # control: the mean's own square counts the noise too
