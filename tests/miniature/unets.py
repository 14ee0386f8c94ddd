"""What both UNet families of the miniature must hold, and a saved random base to hold it on."""

from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL

from base_models.load import load_base
from base_models.sample import sample
from miniature.bases import SHIPPED
from miniature.law import all_prompts
from miniature.text import answers

PROMPTS = [
    "a left hand, fingers spread, tan skin, over snow",
    "a cream sign saying stop, over grass",
]


def save_random(family: Any, folder: Path) -> tuple[Path, dict[str, torch.nn.Module]]:
    """Beside a link to the newest FLUX grade, as the shipped ones stand; and its readers."""
    (folder / "newest").symlink_to(SHIPPED / "newest")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        readers, network = family.make_readers(), family.make_network()
    vae = AutoencoderKL.from_pretrained(SHIPPED / "newest/vae")
    family.save(folder / "base", network, vae, readers)
    return folder / "base", readers


def latents(b: int) -> torch.Tensor:
    return torch.randn(b, 12, 16, 16, generator=torch.Generator().manual_seed(1))


class Perfect(torch.nn.Module):
    """Knows the images, and so the noise; keeps what it was asked."""

    def __init__(self, clean: torch.Tensor, beta_end: float, steps: int) -> None:
        super().__init__()
        self.clean = clean
        self.abar = (1 - torch.linspace(0.00085**0.5, beta_end**0.5, steps) ** 2).cumprod(0)

    def forward(self, x, t, encoder_hidden_states, added_cond_kwargs, return_dict):
        self.t, self.sizes, self.text = t, added_cond_kwargs["time_ids"], encoder_hidden_states
        abar = self.abar[t].view(-1, 1, 1, 1)
        return ((x - abar.sqrt() * self.clean) / (1 - abar).sqrt(),)


def check_loss(family: Any, beta_end: float, steps: int) -> None:
    clean, said = latents(8), {"text": torch.ones(8, 2, 3), "pooled": torch.ones(8, 3)}

    def loss(network: torch.nn.Module) -> torch.Tensor:
        return family.loss(network, clean, said, torch.Generator().manual_seed(5))

    perfect = Perfect(clean, beta_end, steps)
    assert loss(perfect) < 1e-6
    assert loss(Perfect(clean, beta_end + 0.001, steps)) > 1e-5  # control: the levels count
    # One time in each eighth of the training steps.
    assert (perfect.t * 8 // steps).tolist() == list(range(8))
    assert perfect.sizes.tolist() == [[64, 64, 0, 0, 64, 64]] * 8
    assert perfect.text is said["text"]
    wrong = Perfect(clean + 0.1, beta_end, steps)
    levels = wrong.abar[perfect.t]
    expected = (0.01 * levels / (1 - levels)).mean()
    torch.testing.assert_close(loss(wrong), expected, rtol=1e-4, atol=1e-6)


def check_rows(family: Any, folder: Path, readers: dict[str, torch.nn.Module]) -> None:
    """The base is trained on what the opened pipeline will say, its empty prompt included."""
    told = family.conditioning(readers)
    every = list(all_prompts())
    chosen = [every.index(prompt) for prompt in PROMPTS]
    said = load_base(str(folder)).encode_prompts(PROMPTS)
    for name, rows in told.items():
        assert len(rows) == len(every) + 1
        torch.testing.assert_close(rows[chosen], said[name], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(rows[[-1, -1]], said[f"empty_{name}"], atol=1e-5, rtol=1e-5)
        assert (rows[chosen[0]] - rows[chosen[1]]).abs().max() > 1e-2
        assert (rows[chosen[0]] - rows[-1]).abs().max() > 1e-2


def check_images(pipeline: Any, folder: Path) -> None:
    pipeline.set_progress_bar_config(disable=True)
    theirs = pipeline(
        PROMPTS, height=64, width=64, num_inference_steps=3, guidance_scale=5.0,
        generator=[torch.Generator().manual_seed(s) for s in (3, 4)], output_type="pt",
    ).images  # fmt: skip
    ours = sample(load_base(str(folder)), PROMPTS, [3, 4], steps=3, height=64, width=64)
    # Ours is rounded to 8 bits.
    assert (ours - theirs).abs().max() <= 0.5 / 255 + 1e-5
    assert (ours[0] - ours[1]).abs().max() > 0.1


def check_folder(folder: Path) -> None:
    """Small, one autoencoder for all, and no trace of the machine."""
    network, vae = (
        folder / part / "diffusion_pytorch_model.safetensors" for part in ("unet", "vae")
    )
    assert network.stat().st_size < 10e6
    assert vae.is_symlink() and not vae.readlink().is_absolute()
    assert vae.resolve() == (SHIPPED / "newest/vae" / vae.name).resolve()
    for path in folder.rglob("*.json"):
        text = path.read_text()
        assert str(folder.parent) not in text and "vocab_file" not in text
        assert 'name_or_path": "/' not in text


def check_devices(family: Any, folder: Path) -> None:
    """Nothing stays on the CPU: an operation across devices fails, the meta device included."""
    model: Any = load_base(str(folder))
    rows = model.encode_prompts(PROMPTS)

    def loss(device: str) -> torch.Tensor:
        said = {name: rows[name].to(device) for name in ("text", "pooled")}
        clean, g = latents(2).to(device), torch.Generator().manual_seed(2)
        return family.loss(model.network.to(device), clean, said, g)

    with torch.no_grad():
        full = loss("cpu")
        with torch.autocast("cpu", torch.bfloat16):
            half = loss("cpu")
        assert half.dtype == torch.float32 and 0 < (half - full).abs() < 0.02 * full
        assert loss("meta").device.type == "meta"


def check_teaching(family: Any, steps: int) -> None:
    """Better than the most frequent answer to every question, and the readers themselves learn."""
    asked = [label[label >= 0] for label in answers()[1].values()]
    blind = sum(int(label.bincount().max()) for label in asked) / sum(map(len, asked))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        readers = torch.nn.ModuleDict(family.make_readers())
    before = [weight.clone() for weight in readers.parameters()]
    assert family.teach(dict(readers.items()), range(steps), seed=3) > blind + 0.05
    moved = [not torch.equal(*pair) for pair in zip(before, readers.parameters(), strict=True)]
    assert sum(moved) > len(moved) / 2
    with torch.random.fork_rng():
        torch.manual_seed(0)
        fresh = family.make_readers()
    assert family.teach(fresh, (), seed=3) < blind + 0.05  # control: the heads alone know nothing
