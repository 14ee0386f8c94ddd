"""The folders that presets are counted on have the released shapes."""

import pytest
import torch

from base_models.outline import open_outline
from benchmarks import preset_table
from benchmarks.preset_table import Config, chosen, gib, save_configs, table
from core.counting import Cost
from core.errors import UserError
from treat.estimate import GIB, Estimate

BILLIONS = {
    "flux": {"transformer": 11.90, "text_encoder": 0.123, "text_encoder_2": 4.76, "vae": 0.084},
    "sdxl": {"unet": 2.57, "text_encoder": 0.123, "text_encoder_2": 0.695, "vae": 0.084},
    "kolors": {"unet": 2.58, "text_encoder": 6.24, "vae": 0.084},
}
"""Weights, as the releases have them."""


@pytest.mark.parametrize("family", BILLIONS)
def test_every_part_has_as_many_weights_as_the_release(family, tmp_path):
    _, networks = open_outline(str(save_configs(tmp_path, family)), torch.bfloat16)
    for name, billions in BILLIONS[family].items():
        weights = list(networks[name].parameters())
        assert {weight.dtype for weight in weights} == {torch.bfloat16}, name
        found = sum(weight.numel() for weight in weights)
        assert found / 1e9 == pytest.approx(billions, rel=0.01), name


def test_the_largest_phase_of_a_preset_is_marked_and_arithmetic_is_an_images():
    phases = {"prompts encoded": Cost(GIB, 9 * 10**12), "reward": Cost(2 * GIB, 4 * 10**12)}
    one = Estimate({}, phases)
    assert [gib(one, name) for name in (*phases, "drawing")] == ["1.0", "[bold]2.0[/]", ""]
    shown = table({"sdxl-24gb": one, "sdxl-16gb": one})  # two images at once, and one
    assert [list(column.cells)[-1] for column in shown.columns] == ["TFLOP an image", "2", "4"]


def test_an_unknown_preset_is_refused_before_anything_is_made(monkeypatch):
    assert chosen(("flux-24gb",)) == ["flux-24gb"] and len(chosen(())) == 9
    monkeypatch.setattr(preset_table, "count", lambda *_: pytest.fail("was counted"))
    with pytest.raises(UserError, match="did you mean 'flux-24gb'"):
        preset_table.main(Config(only=("flux-48gb", "flux-25gb")))
