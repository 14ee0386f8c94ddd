"""Faults of names, shapes, alphas, metadata and numbers: each planted, each named rightly."""

import pytest
import torch

from tests.treat_output import lora_files as files
from treat import verify
from treat.lora_files.faults import FAULTS, HEADER

PU, PT, KU, KF, KS, DT, OT = (
    "peft-unet", "peft-transformer", "kohya-unet", "kohya-flux", "kohya-sgm", "down-transformer",
    "onetrainer-flux",
)  # fmt: skip


def codes(path, readers):
    return {one.code for one in verify.examine(path, None, readers).findings}


def first(tensors, part):
    return next(name for name in tensors if part in name)


def renamed(old, new):
    return lambda t, m: {n.replace(old, new): one for n, one in t.items()}


def without(part):
    return lambda t, m: {n: one for n, one in t.items() if n != first(t, part)}


def changed(part, change, every=False):
    def do(t, m):
        chosen = [n for n in t if part in n] if every else [first(t, part)]
        return t | {n: change(t[n]) for n in chosen}

    return do


def added(**tensors):
    return lambda t, m: t | {n.replace("__", "."): one for n, one in tensors.items()}


def said(**entries):
    return lambda t, m: m.update({n.replace("__", "."): one for n, one in entries.items()}) or t


def adapter(prefix, modules=files.UNET, **changes):
    return lambda t, m: m.update(files.settings(modules, prefix, **changes)) or t


def both(*doings):
    def do(t, m):
        for one in doings:
            t = one(t, m)
        return t

    return do


def ranked(t, m):
    """One module of rank 2; its alpha follows."""
    a, b = first(t, "lora_down"), first(t, "lora_up")
    return t | {a: t[a][:2], b: t[b][:, :2], first(t, "alpha"): torch.tensor(2.0)}


def ranked_peft(t, m):
    a, b = first(t, "lora_A"), first(t, "lora_B")
    return t | {a: t[a][:2], b: t[b][:, :2]}


def narrow(t):
    return t.T


def put(value):
    def do(one):
        one = one.clone()
        one.view(-1)[1] = value
        return one

    return do


ONE = torch.zeros(1)
PAIR = {"lora_A": torch.zeros(4, 16), "lora_B": torch.ones(16, 4)}
TE = {
    f"text_encoder.text_model.encoder.layers.0.self_attn.q_proj.{h}.weight": t
    for h, t in PAIR.items()
}
HOST = {"ss_train_data_dir": "/home/anna/pictures/set"}
FAULTY = {
    # names
    "a tensor of the training": (PT, added(step=ONE), "unknown-name"),
    "an optimizer's": (KU, added(optimizer__exp_avg=ONE), "unknown-name"),
    "a weight of the base": (PT, added(transformer__proj_out__weight=ONE), "base-weight"),
    "a bias of the base": (PU, added(unet__conv_in__bias=ONE), "base-weight"),
    "a third factor": (
        PT, lambda t, m: t | {f"transformer.{files.FLUX[0]}.lora_C.weight": ONE}, "unknown-role"),
    "a half misspelt": (PT, renamed(f"{files.FLUX[0]}.lora_A.weight",
                                    f"{files.FLUX[0]}.lora_A.wieght"), "unknown-role"),
    "no LoRA at all": (PT, lambda t, m: {"model.weight": ONE}, "no-module"),
    "a prefix misspelt": (PT, renamed("transformer.", "transfomer."), "unknown-name"),
    "two namings": (PT, lambda t, m: t | files.sound(KF), "mixed"),
    "UNet in both namings": (KU, lambda t, m: t | files.sound(PU), "mixed"),
    "text encoder of another naming": (KU, lambda t, m: t | TE, "mixed"),
    "no prefix": (PU, renamed("unet.", ""), "prefix"),
    "peft's own prefix": (PU, renamed("unet.", "base_model.model."), "prefix"),
    "FLUX without prefix": (PT, lambda t, m: {n[12:]: o for n, o in t.items()}, "prefix"),
    "diffusers' kohya helper on FLUX": (
        PT, lambda t, m: files.named(files.FLUX, "transformer_", files.KOHYA, 4, "_"), "helper"),
    "the helper with kohya's prefix": (
        PT, lambda t, m: files.named(files.FLUX, "lora_unet_", files.KOHYA, 4., "_"), "helper"),
    "peft's adapter name": (PT, renamed(".weight", ".default.weight"), "adapter-name"),
    "SDXL in PEFT names": (PU, lambda t, m: t, "dropped"),
    "ComfyUI's FLUX with PEFT halves": (
        KF, lambda t, m: files.fused("diffusion_model.", ("lora_A", "lora_B"), None), "dropped"),
    "DoRA": (KU, added(lora_unet_mid_block_attentions_0_proj_in__dora_scale=ONE), "dora"),
    "DoRA in PEFT names": (
        PU, lambda t, m: t | {f"unet.{files.UNET[0]}.lora_magnitude_vector": ONE}, "dora-peft"),
    "a trained bias": (PU, lambda t, m: t | {f"unet.{files.UNET[0]}.lora_B.bias": ONE}, "extra"),
    "a difference": (KU, added(lora_unet_conv_in__diff=ONE), "extra"),
    # pairs and shapes
    "no lora_A": (PT, without("lora_A"), "half-A"),
    "no lora_B": (PT, without("lora_B"), "half-B"),
    "no lora_down": (KU, without("lora_down"), "half-A"),
    "no lora_up": (KF, without("lora_up"), "half-B"),
    "a half spelt otherwise": (
        PT, lambda t, m: {(n.replace("lora_B", "lora_up") if n == first(t, "lora_B") else n): o
                          for n, o in t.items()}, "half-B"),
    "an alpha alone": (KU, added(lora_unet_mid_block_attentions_0_proj_in__alpha=ONE),
                       "alpha-alone"),
    "ranks of A and B": (PT, changed("lora_A", lambda a: a[:3]), "rank"),
    "A transposed": (PT, changed("lora_A", narrow), "transposed-A"),
    "B transposed": (PT, changed("lora_B", narrow), "transposed-B"),
    "all transposed": (PT, changed("lora_", narrow, every=True), "transposed"),
    "up transposed": (KU, changed("lora_up", narrow), "transposed-B"),
    "one side": (PT, changed("lora_A", lambda a: a[0].contiguous()), "sides"),
    "three sides": (PT, changed("lora_B", lambda b: b[None]), "sides"),
    "an up that is no 1x1": (
        KU, changed("proj.lora_", lambda x: x[..., None, None].repeat(1, 1, 3, 3), True), "sides"),
    "an empty tensor": (PT, changed("lora_A", lambda a: a[:0]), "empty"),
    "ranks differ in PEFT names": (PT, ranked_peft, "ranks-differ"),
    # dtypes
    "int8 weights": (PT, changed("lora_A", lambda a: a.to(torch.int8)), "integer"),
    "fp8 weights": (PT, changed("lora_A", lambda a: a.to(torch.float8_e4m3fn)), "odd-dtype"),
    "fp64 weights": (KU, changed("lora_", lambda a: a.double(), True), "odd-dtype"),
    "halves of two dtypes": (PT, changed("lora_B", lambda b: b.bfloat16()), "dtypes"),
    # alphas
    "int64 alpha": (KU, changed("alpha", lambda a: a.long(), True), "alpha-integer"),
    "int64 alpha in PEFT names": (
        PT, lambda t, m: files.named(files.FLUX, "transformer.", alpha=4), "alpha-integer-peft"),
    "alpha a vector": (KU, changed("alpha", lambda a: a.repeat(4)), "alpha-shape"),
    "alpha negative": (KU, changed("alpha", lambda a: -a, True), "alpha-sign"),
    "alpha not a number": (KF, changed("alpha", lambda a: a * torch.nan), "alpha-sign"),
    "alpha zero": (KU, changed("alpha", lambda a: a * 0, True), "alpha-zero"),
    "alpha of one module": (
        KU, lambda t, m: {n: o * 2 if "alpha" in n else o for n, o in t.items()
                          if "alpha" not in n or n == first(t, "alpha")}, "alpha-partial"),
    "OneTrainer without an alpha": (OT, without("alpha"), "alpha-partial"),
    "alphas differ": (KU, changed("alpha", lambda a: a * 2), "alpha-differs"),
    "ranks and alphas differ": (KU, ranked, "alpha-differs"),
    "alpha in a UNet's PEFT names": (
        PU, lambda t, m: files.named(files.UNET, "unet.", alpha=4.0), "alpha-peft"),
    "alpha that diffusers passes over": (
        DT, lambda t, m: files.named(files.FLUX, "transformer.", files.KOHYA, 8.0),
        "alpha-ignored"),
    "alpha with adapter metadata": (KU, adapter("unet."), "alpha-twice"),
    "alpha with adapter metadata, FLUX": (
        PT, both(lambda t, m: files.named(files.FLUX, "transformer.", alpha=4.0),
                 adapter("transformer.", files.FLUX)), "alpha-twice"),
    "scale only in the metadata": (PU, adapter("unet.", lora_alpha=8), "alpha-hidden"),
    "scale of a pattern": (
        PT, adapter("transformer.", files.FLUX, alpha_pattern={files.FLUX[0]: 8}), "alpha-hidden"),
    "scale by rslora": (PT, adapter("transformer.", files.FLUX, use_rslora=True), "alpha-hidden"),
    "ss_network_alpha": (KU, said(ss_network_alpha="1.0"), "alpha-said"),
    "ss_network_dim": (KU, said(ss_network_dim="16"), "rank-said"),
    # metadata
    "adapter metadata no JSON": (PU, said(lora_adapter_metadata="{"), "metadata-json"),
    "adapter metadata a list": (PU, said(lora_adapter_metadata="[]"), "metadata-json"),
    "adapter metadata without prefix": (PU, adapter(""), "metadata-prefix"),
    "adapter metadata of a transformer": (PU, adapter("transformer."), "metadata-prefix"),
    "a field that peft has not": (PU, adapter("unet.", colour=1), "metadata-field"),
    "r is not the rank": (PU, adapter("unet.", r=8, lora_alpha=8), "metadata-rank"),
    "lora_alpha a text": (PU, adapter("unet.", lora_alpha="32"), "metadata-type"),
    "lora_alpha zero": (PU, adapter("unet.", lora_alpha=0), "metadata-zero"),
    "a pattern of no end": (PU, adapter("unet.", rank_pattern={"(a+)+$": 4}), "metadata-pattern"),
    "use_dora alone": (PU, adapter("unet.", use_dora=True), "metadata-dora"),
    "FLUX, one alpha": (
        PT, lambda t, m: t | {f"transformer.{files.FLUX[0]}.alpha": ONE + 2}, "alpha-partial"),
    "a path": (PT, lambda t, m: m.update(HOST) or t, "path"),
    "a path of Windows": (PT, said(ss_sd_model_name="C:\\models\\base.safetensors"), "path"),
    "a token": (PT, said(note="hf_" + "aB3" * 10), "secret"),
    "sshs_model_hash": (PT, said(sshs_model_hash="0" * 64), "hash"),
    "modelspec's hash": (PT, said(modelspec__hash_sha256="0x" + "1" * 64), "hash"),
    "sshs_legacy_hash": (PT, said(sshs_legacy_hash="0" * 8), "hash"),
    # values
    "NaN": (PT, changed("lora_A", put(torch.nan)), "not-finite"),
    "infinity": (KU, changed("lora_up", put(torch.inf)), "not-finite"),
    "far too large": (PT, changed("lora_B", lambda b: b * 1e3), "large"),
    "one beyond the others": (
        PT, both(changed("lora_B", lambda b: b * 1e-3, True), changed("lora_B", lambda b: b * 5e2)),
        "outlier"),
    "nothing learned": (PT, changed("lora_B", torch.zeros_like, True), "nothing"),
    "one that learned nothing": (KU, changed("lora_up", torch.zeros_like), "partly-nothing"),
}  # fmt: skip
READERS = {PU: ("diffusers",), OT: ("ComfyUI",)}
"""Who reads a sound file of these namings whole; every usual reader that of the others."""
MINOR = {"unknown-name", "alpha-integer"}
ALONE = {"dropped", "ranks-differ", "prefix", "helper", "no-module", "extra", "adapter-name"}
"""What stands beside nothing else; others may bring a second finding (a lost half, a rank)."""


@pytest.mark.parametrize("name", FAULTY)
def test_a_planted_fault_is_named(tmp_path, name):
    naming, plant, code = FAULTY[name]
    readers = READERS.get(naming, verify.USUAL) if code != "dropped" else verify.USUAL
    control, metadata = files.save(tmp_path / "sound.safetensors", files.sound(naming)), {}
    assert name == "SDXL in PEFT names" or not codes(control, readers)
    tensors = plant(files.sound(naming), metadata)
    path = files.save(tmp_path / "faulty.safetensors", tensors, metadata)
    report = verify.examine(path, None, readers)
    finding = next(one for one in report.findings if one.code == code)
    if code in ALONE:
        assert {one.code for one in report.findings} - MINOR == {code}
    if set(finding.wrong) & set(readers):
        assert verify.code([report], readers) == 1
    assert finding.fault.cure and finding.places[0]


@pytest.mark.parametrize("name", ["NaN", "ranks of A and B"])
def test_a_broken_file_has_no_strength(tmp_path, name):
    tensors = FAULTY[name][1](files.sound(PT), {})
    report = verify.examine(files.save(tmp_path / "a.safetensors", tensors))
    assert not any(one.strengths or one.whole for one in report.verdicts)
    sound = verify.examine(files.save(tmp_path / "b.safetensors", files.sound(PT))).verdicts[0]
    assert sound.strengths == (1.0,) and sound.whole


def test_of_a_dora_without_magnitudes_only_diffusers_has_no_strength(tmp_path):
    said = files.settings(files.FLUX, "transformer.", use_dora=True)
    path = files.save(tmp_path / "a.safetensors", files.sound(PT), said)
    whole = {one.reader: one.whole for one in verify.examine(path).verdicts}
    assert not whole["diffusers"] and whole["ComfyUI"]


def test_a_misspelt_half_is_named_first(tmp_path):
    tensors = FAULTY["a half misspelt"][1](files.sound(PT), {})
    finding = verify.examine(files.save(tmp_path / "a.safetensors", tensors)).findings[0]
    assert f"transformer.{files.FLUX[0]}.lora_A.wieght" in finding.places
    assert ".lora_A.weight" in finding.detail


def test_every_fault_has_a_test():
    planted = {code for _, _, code in FAULTY.values()}
    assert planted == set(FAULTS) - set(HEADER) - {"base-module", "base-shape", "base-family"}
    assert len(FAULTY) >= 60
