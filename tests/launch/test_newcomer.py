"""A newcomer's whole path on the miniature, by the unmodified openai client and plain diffusers."""

import time
from pathlib import Path

import pytest

from miniature.prompts import balanced, split
from tests.launch.served import Served, until

ROOT = Path(__file__).resolve().parents[2]
STEPS = 60
"""So many that the pause finds them unfinished: a job is looked at every two seconds."""
SETTINGS = {
    "detector": "first",
    "steps": STEPS,
    "batch": 1,
    "height": 64,
    "width": 64,
    "sampling_steps": 2,
    "rank": 2,
    "offline_weight": 0,
    "guard": "off",
    "watch_every": 0,
    "picture_every": 0,
    "checkpoint_every": 1,
}


@pytest.mark.slow
def test_serve_upload_create_watch_pause_kill_resume_download_load(tmp_path):
    import torch
    from diffusers import FluxPipeline

    base = ROOT / "miniature/bases/newest"
    models = f"newest={base}", f"first={ROOT}/miniature/detectors/first"
    served = Served(tmp_path, "--models", *models)
    client = served.openai
    try:
        prompts = "".join(f"{one}\n" for one in balanced(split()["train"], 20, seed=0))
        file = client.files.create(file=("prompts.txt", prompts.encode()), purpose="fine-tune")
        method = {"type": "pixel_reward", "pixel_reward": SETTINGS}
        asked = {"model": "newest", "training_file": file.id, "method": method}
        plan = client.fine_tuning.jobs.create(**asked, extra_body={"dry_run": True})
        assert plan.estimate["peak"] > 1e6 and plan.hyperparameters.rank == 2
        job = client.fine_tuning.jobs.create(**asked)
        until(lambda: (client.fine_tuning.jobs.retrieve(job.id).step or 0) >= 2, 180)
        client.fine_tuning.jobs.pause(job.id)
        assert served.ends(job.id, {"paused"}, 120).step < STEPS
        served.kill()
        served.start()
        client = served.openai
        assert client.fine_tuning.jobs.resume(job.id).status == "queued"
        time.sleep(3)
        served.kill()  # in the midst of it
        served.start()
        client = served.openai
        done = served.ends(job.id, seconds=300)
        assert done.status == "succeeded", done.error
        said = served.events(job.id)
        assert sum(one.startswith("step ") for one in said) == STEPS
        names = {one: client.files.retrieve(one).filename for one in done.result_files}
        (lora,) = (i for i, n in names.items() if n == "export/pytorch_lora_weights.safetensors")
        client.files.content(lora).write_to_file(tmp_path / "lora.safetensors")
        pipeline = FluxPipeline.from_pretrained(base)
        plain = draw(pipeline)
        pipeline.load_lora_weights(str(tmp_path), weight_name="lora.safetensors")
        assert not torch.equal(draw(pipeline), plain)
        export = client.fine_tuning.jobs.create(
            model="newest",
            training_file=done.fine_tuned_model,
            method={"type": "export", "export": {"title": "again", "step": "last"}},
        )
        exported = served.ends(export.id, seconds=120)
        assert exported.status == "succeeded", exported.error
    finally:
        served.stop()


def draw(pipeline):
    import torch

    return pipeline(
        "a left hand",
        height=64,
        width=64,
        num_inference_steps=1,
        max_sequence_length=16,
        generator=torch.Generator().manual_seed(0),
        output_type="pt",
    ).images
