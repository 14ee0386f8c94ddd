"""Converted networks against the architecture as its papers and flags describe it, said again."""

import math
from typing import Any

import pytest
import torch
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F

from base_models.guided_diffusion import Heads, network, scheduler
from base_models.load import load_base
from base_models.sample import sample
from core.errors import UserError
from treat import convert_base

WIDTH, SIDE = 64, 16
"""Of 32 channels every group norm would take the embedding of time away again."""


class Residual(nn.Module):
    """Norm, SiLU, convolution, time, norm, SiLU, convolution; resampled before the first one."""

    def __init__(self, given, made, shifted, change=None):
        super().__init__()
        self.change, self.shifted = change, shifted
        self.in_layers = nn.Sequential(
            nn.GroupNorm(32, given), nn.SiLU(), nn.Conv2d(given, made, 3, padding=1)
        )
        self.emb_layers = nn.Sequential(
            nn.SiLU(), nn.Linear(4 * WIDTH, 2 * made if shifted else made)
        )
        self.out_layers = nn.Sequential(
            nn.GroupNorm(32, made), nn.SiLU(), nn.Dropout(), nn.Conv2d(made, made, 3, padding=1)
        )
        if given != made:
            self.skip_connection = nn.Conv2d(given, made, 1)

    def forward(self, x, time):
        norm, act, convolution = self.in_layers
        h = act(norm(x))
        if self.change == "down":
            h, x = F.avg_pool2d(h, 2), F.avg_pool2d(x, 2)
        if self.change == "up":
            h, x = (F.interpolate(one, scale_factor=2, mode="nearest") for one in (h, x))
        h, told = convolution(h), self.emb_layers(time)[:, :, None, None]
        if self.shifted:
            scale, shift = told.chunk(2, 1)
            h = self.out_layers[1:](self.out_layers[0](h) * (1 + scale) + shift)
        else:
            h = self.out_layers(h + told)
        return h + (self.skip_connection(x) if hasattr(self, "skip_connection") else x)


class Attention(nn.Module):
    """All places among each other; `qkv` head by head, or (`new`) queries, keys, values."""

    def __init__(self, channels, heads, new):
        super().__init__()
        self.heads, self.new = heads, new
        self.norm = nn.GroupNorm(32, channels)
        self.qkv = nn.Conv1d(channels, 3 * channels, 1)
        self.proj_out = nn.Conv1d(channels, channels, 1)

    def forward(self, x, time):
        flat = x.flatten(2)
        qkv = self.qkv(self.norm(flat))
        if self.new:
            q, k, v = (one.unflatten(1, (self.heads, -1)) for one in qkv.chunk(3, 1))
        else:
            q, k, v = qkv.unflatten(1, (self.heads, -1)).chunk(3, 2)
        weights = torch.softmax(q.transpose(-1, -2) @ k / math.sqrt(q.shape[2]), -1)
        found = (v @ weights.transpose(-1, -2)).flatten(1, 2)
        return x + self.proj_out(found).view_as(x)


class Down(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.op = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, x, time):
        return self.op(x)


class Up(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x, time):
        return self.conv(F.interpolate(x, scale_factor=2, mode="nearest"))


class Entry(nn.Conv2d):
    def forward(self, input, time=None):
        return super().forward(input)


class Theirs(nn.Module):
    """The UNet of guided-diffusion: a level of `n` residual blocks for each of `mults`."""

    def __init__(self, mults=(1, 2), attended=(1,), n=1, heads=2, width=None, new=False,
                 shifted=False, resampled=False, learnt=False):  # fmt: skip
        super().__init__()

        def attention(channels):
            return Attention(channels, channels // width if width else heads, new)

        def resample(channels, change):
            if resampled:
                return Residual(channels, channels, shifted, change)
            return (Down if change == "down" else Up)(channels)

        self.time_embed = nn.Sequential(
            nn.Linear(WIDTH, 4 * WIDTH), nn.SiLU(), nn.Linear(4 * WIDTH, 4 * WIDTH)
        )
        self.input_blocks = nn.ModuleList([nn.ModuleList([Entry(3, WIDTH, 3, padding=1)])])
        now, kept = WIDTH, [WIDTH]
        for level, mult in enumerate(mults):
            for _ in range(n):
                parts = [Residual(now, mult * WIDTH, shifted)]
                now = mult * WIDTH
                parts += [attention(now)] if level in attended else []
                self.input_blocks.append(nn.ModuleList(parts))
                kept.append(now)
            if level + 1 < len(mults):
                self.input_blocks.append(nn.ModuleList([resample(now, "down")]))
                kept.append(now)
        self.middle_block = nn.ModuleList(
            [Residual(now, now, shifted), attention(now), Residual(now, now, shifted)]
        )
        self.output_blocks = nn.ModuleList()
        for level, mult in reversed([*enumerate(mults)]):
            for i in range(n + 1):
                parts = [Residual(now + kept.pop(), mult * WIDTH, shifted)]
                now = mult * WIDTH
                parts += [attention(now)] if level in attended else []
                parts += [resample(now, "up")] if level and i == n else []
                self.output_blocks.append(nn.ModuleList(parts))
        out = 6 if learnt else 3
        self.out = nn.Sequential(
            nn.GroupNorm(32, now), nn.SiLU(), nn.Conv2d(now, out, 3, padding=1)
        )

    def forward(self, x, t):
        rates = torch.exp(-math.log(10000) * torch.arange(WIDTH // 2) / (WIDTH // 2))
        angles = t[:, None] * rates
        time = self.time_embed(torch.cat([angles.cos(), angles.sin()], -1))
        kept = []
        for block in self.input_blocks:
            for part in block.children():
                x = part(x, time)
            kept.append(x)
        for part in self.middle_block:
            x = part(x, time)
        for block in self.output_blocks:
            x = torch.cat([x, kept.pop()], 1)
            for part in block.children():
                x = part(x, time)
        return self.out(x)


def theirs(**flags: Any) -> Theirs:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        made = Theirs(**flags).eval()
        for weight in made.parameters():  # norms and biases that are not all alike
            weight.data += 0.05 * torch.randn_like(weight)
    return made


CASES: dict[str, tuple[dict[str, Any], Heads]] = {
    "heads": ({}, Heads(number=2)),
    "deep": ({"mults": (1, 2, 2), "attended": (1, 2), "n": 2}, Heads(number=2)),
    "head width": ({"mults": (1, 2, 3), "attended": (1,), "width": 16}, Heads(channels=16)),
    "new order": ({"new": True}, Heads(number=2, new_order=True)),
    "scale and shift": ({"shifted": True, "learnt": True}, Heads(number=2)),
    "resampling blocks": (
        {"resampled": True, "shifted": True, "mults": (1, 1, 2), "attended": (0, 2), "n": 2,
         "width": 8},
        Heads(channels=8),
    ),
    "resampling by a level without attention": (
        {"resampled": True, "mults": (1, 2, 2), "attended": (2,)}, Heads(number=2)
    ),
    "one level": ({"mults": (1,), "attended": (0,)}, Heads(number=2)),
}  # fmt: skip


@torch.no_grad()
@pytest.mark.parametrize("case", CASES)
def test_the_converted_network_is_the_same_function(case):
    flags, heads = CASES[case]
    made = theirs(**flags)
    ours = network(made.state_dict(), SIDE, heads)
    x, t = torch.randn(2, 3, SIDE, SIDE), torch.tensor([3, 700])
    expected = made(x, t)
    found = ours(x, t).sample
    assert expected.std() > 0.1
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert (ours(x, t + 9).sample - expected).abs().max() > 1e-3  # control: time counts
    wrong = heads._replace(new_order=not heads.new_order)
    other = network(made.state_dict(), SIDE, wrong)(x, t).sample
    assert (other - expected).abs().max() > 1e-4  # control: so does the order of the heads


@pytest.mark.parametrize(
    ("flags", "heads", "says"),
    [
        ({}, Heads(), "--num-heads and --num-head-channels"),
        ({"mults": (1, 2, 3), "attended": (1,)}, Heads(number=2), "--num_heads"),
        ({}, Heads(channels=24), "do not divide"),
        ({"mults": (2, 2)}, Heads(number=2), "--channel_mult"),
    ],
)
def test_what_unet2d_cannot_be_is_refused_by_its_flag(flags, heads, says):
    if flags.get("mults") == (2, 2):
        state = theirs(mults=(1, 2)).state_dict()
        state["input_blocks.0.0.weight"] = torch.zeros(2 * WIDTH, 3, 3, 3)
    else:
        state = theirs(**flags).state_dict()
    with pytest.raises(UserError, match=says):
        network(state, SIDE, heads)


def test_other_networks_are_refused():
    state, heads = theirs(mults=(1, 2, 2), n=2).state_dict(), Heads(number=2)
    with pytest.raises(UserError, match="--class_cond"):
        network({**state, "label_emb.weight": torch.zeros(10, 4 * WIDTH)}, SIDE, heads)
    with pytest.raises(UserError, match="super-resolution"):
        wide = {"input_blocks.0.0.weight": torch.zeros(WIDTH, 12, 3, 3)}
        network({**state, **wide}, SIDE, heads)
    plain = {n: t for n, t in state.items() if ".op." not in n and ".conv." not in n}
    with pytest.raises(UserError, match="--conv_resample"):
        network(plain, SIDE, heads)
    with pytest.raises(UserError, match="no UNet of guided-diffusion"):
        network({"a": torch.zeros(1)}, SIDE, heads)
    with pytest.raises(UserError, match="known here"):
        network({**state, "further.weight": torch.zeros(1)}, SIDE, heads)


def test_their_noise_is_kept():
    for kind in ("linear", "cosine"):
        law = scheduler(kind, 1000, True, False)
        own = "linear" if kind == "linear" else "squaredcos_cap_v2"
        whole = DDPMScheduler(beta_schedule=own)
        torch.testing.assert_close(law.alphas_cumprod, whole.alphas_cumprod)
    fine = scheduler("cosine", 4000, False, True)
    kept = scheduler("cosine", 4000, True, True)
    assert fine.config["num_train_timesteps"] == 4000
    assert kept.config["num_train_timesteps"] == 1000
    # what the network is told at t of 1000 is what it was told at 4 t of 4000
    torch.testing.assert_close(kept.alphas_cumprod, fine.alphas_cumprod[::4], atol=1e-6, rtol=1e-4)
    with pytest.raises(UserError, match="multiple of 1000"):
        scheduler("linear", 2500, True, True)


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_a_file_becomes_a_base_that_draws(tmp_path, suffix):
    made = theirs(shifted=True, learnt=True)
    source = tmp_path / f"ema{suffix}"
    if suffix == ".pt":
        torch.save(made.state_dict(), source)
    else:
        save_file(made.state_dict(), source)
    given = {"source": source, "out": tmp_path / "base", "image_size": SIDE, "num_heads": 2}
    convert_base.main(convert_base.Config(**given, noise_schedule="cosine"))
    model: Any = load_base(str(tmp_path / "base"))
    assert model.scheduler.config.variance_type == "learned_range"
    images = sample(model, ["", ""], [0, 1], steps=3, height=SIDE, width=SIDE)
    assert images.shape == (2, 3, SIDE, SIDE) and images.std() > 0
    x, t = torch.randn(1, 3, SIDE, SIDE), torch.tensor([40])
    with torch.no_grad():
        torch.testing.assert_close(model._predict(x, t), made(x, t)[:, :3], atol=1e-5, rtol=1e-5)
    with pytest.raises(UserError, match="there already"):
        convert_base.main(convert_base.Config(**given))
    with pytest.raises(UserError, match="no file"):
        convert_base.main(convert_base.Config(**{**given, "source": tmp_path / "none.pt"}))
