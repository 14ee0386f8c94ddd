"""A person treats the miniature in a real browser; diffusers loads what they download."""

from urllib.parse import urlsplit

import pytest

from miniature.prompts import balanced, split
from tests.launch.served import Served
from tests.launch.test_newcomer import ROOT, SETTINGS, draw
from tests.system.foreign import call

pytestmark = pytest.mark.system
BASE = ROOT / "miniature/bases/newest"
TOLD = {**SETTINGS, "base": "newest", "steps": 40, "watch_every": 20, "watch_images": 2}


@pytest.fixture(scope="module")
def met(tmp_path_factory):
    folder = tmp_path_factory.mktemp("person")
    models = f"newest={BASE}", f"first={ROOT}/miniature/detectors/first"
    served = Served(folder, "--models", *models)
    prompts = "".join(f"{one}\n" for one in balanced(split()["train"], 20, seed=0))
    asked = {"url": f"http://127.0.0.1:{served.port}/", "prompts": prompts, "settings": TOLD}
    try:
        yield {
            **call("browser", {**asked, "folder": str(folder)}, "treat"),
            "address": asked["url"],
        }
    finally:
        served.stop()


def test_sampled_saved_paused_resumed(met):
    assert [one.partition("after")[2].split()[0] for one in met["asked"]] == ["step", "step"]
    assert 2 <= int(met["paused"].split()[0]) < 40 and met["steps"] == "40 of 40"
    assert met["memory"].endswith(("MB", "GB"))
    assert met["told"] >= 3  # at 20, at 40, and where asked for


def test_what_was_downloaded_is_an_adapter_for_diffusers(met):
    import torch
    from diffusers import FluxPipeline

    pipeline = FluxPipeline.from_pretrained(BASE)
    plain = draw(pipeline)
    pipeline.load_lora_weights(met["file"])
    assert not torch.equal(draw(pipeline), plain)


def test_it_fits_everywhere_and_thresholds_show_less_and_less(met):
    for look in met["looks"]:
        assert look["wider"] == 0
        all_of_it, half, none = look["painted"]
        assert all_of_it > half >= none and all_of_it > 0
    assert len(met["looks"]) == 4


def test_no_fault_is_said_and_nobody_else_is_called(met):
    assert met["said"] == []
    hosts = {urlsplit(url).netloc for url in met["called"] if not url.startswith("blob:")}
    assert hosts == {urlsplit(met["address"]).netloc} and len(met["called"]) > 50
