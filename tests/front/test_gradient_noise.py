"""The estimates of signal and noise are unbiased; gamma and K reach the gradients measured."""

import pytest
import torch

from benchmarks import gradient_noise
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


def test_gamma_multiplies_only_what_passes_from_step_to_step(monkeypatch, capsys):
    monkeypatch.setattr(gradient_noise, "Ceiling", lambda prompts: Even())
    config = gradient_noise.Config(batches=2, batch=2, sampling_steps=2, last=(1, 2), gammas=(0, 1))
    found = {}
    for row, gradient in gradient_noise.gradients(config):
        found.setdefault(row, []).append(gradient)
    named = [("ceiling", "threshold", *menu) for menu in ((1, 0), (2, 0), (2, 1))]
    assert list(found) == named
    one, none, whole = (torch.stack(rows) for rows in found.values())
    assert one.shape[0] == 2 and one.abs().amax() > 0
    assert (none - one).norm() > 0.01 * one.norm()  # the step before learns too
    assert (whole - none).norm() > 0.01 * none.norm()
    gradient_noise.main(config)
    assert "ceiling" in capsys.readouterr().out


def test_each_selection_has_a_row_of_its_own(monkeypatch):
    monkeypatch.setattr(gradient_noise, "Ceiling", lambda prompts: Even())
    menu = {"selections": ("threshold", "area"), "last": (1,)}
    config = gradient_noise.Config(batches=2, batch=2, sampling_steps=2, **menu)
    found = {}
    for row, gradient in gradient_noise.gradients(config):
        found.setdefault(row.selection, []).append(gradient.norm())
    assert len(found["threshold"]) == len(found["area"]) == 2
    assert sum(found["area"]) < sum(found["threshold"])  # dark pixels are not counted, but shared


class Even:
    """A detector that likes dark images."""

    differentiable = True

    def __call__(self, images):
        return images.mean(dim=1, keepdim=True)
