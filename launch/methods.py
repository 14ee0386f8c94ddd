"""The methods that a job may have: which program runs, and what a request may say to it.

A further program is one line in `METHODS`. Its settings are the fields of its own `Config`, which
is named by a string: it stands above or beside this package, and only child processes import it.
"""

from collections.abc import Mapping
from typing import NamedTuple

from core.wishes import WISHES


class Method(NamedTuple):
    """One program as a kind of job.

    What a request says is a stranger's. So every setting that could name a file or hold a word of
    its own is listed in `inputs` or `words`; any other such setting is refused, and a test fails
    until a new one is placed.
    """

    does: str
    command: tuple[str, ...]
    """Words of `diffdoctor`."""
    config: str
    """Module of its `Config`."""
    inputs: Mapping[str, str] = {}
    """Settings that name a file, a model or a job, and what that is to be (for people)."""
    named: frozenset[str] = frozenset()
    """Inputs whose values are NAME=REFERENCE each."""
    otherwise: Mapping[str, tuple[str, ...]] = {}
    """Inputs that may hold one of these words instead, which name nothing."""
    words: frozenset[str] = frozenset()
    """Settings of free text that names nothing: titles, licences, names in a fixed list."""
    training_file: str | None = None
    """The setting that the request's `training_file` goes to."""
    validation_file: str | None = None
    model: str | None = None
    """The setting that the request's `model` goes to."""
    needs_training_file: bool = True
    place: str = ""
    """Folder within the run folder that is the program's `out`; empty: the run folder itself."""
    proof: str = "summary.json"
    """A file in that folder without which the job has not succeeded, whatever the exit code."""
    then: tuple[str, ...] = ()
    """Words of a second command, on the run folder's export: `{out}` stands for `out`."""
    results: tuple[str, ...] = ()
    """What is offered for download, as patterns within the run folder."""
    product: str = ""
    """Folder within the run folder that a later job gets when it names this one; empty: all."""
    total: str | None = None
    """The setting that says how many steps there are."""
    wishes: tuple[str, ...] = ()
    """What may be asked of it while it runs, of `core.wishes.WISHES`."""
    several: bool = False
    """Its program may run as several processes."""
    estimate: str | None = None
    """Module whose `estimate(config)` counts the memory."""
    module: str = "diffdoctor.cli"


METHODS: dict[str, Method] = {
    "artifact_detector": Method(
        does="learn to see artifacts from images and masks",
        command=("detector", "train"),
        config="detector.settings",
        inputs={
            "data": "labelled images: a .zip of a store, or of images/ and masks/",
            "init": "a detector to start from",
            "alignment_data": "labelled images whose sound originals are known (.zip)",
        },
        words=frozenset({"variant", "device", "augmentation.unflipped"}),
        training_file="data",
        model="variant",
        results=("detector/*", "summary.json", "held_out.json"),
        total="steps",
        wishes=WISHES,
        several=True,
    ),
    "pixel_reward": Method(
        does="train a LoRA adapter of a base model from a frozen detector's artifact map",
        command=("treat",),
        config="treat.settings",
        inputs={
            "base": "the base model",
            "prompts": "what to draw while learning: .txt, .jsonl, .csv or .parquet",
            "detector": "the detector whose map is lowered",
            "further_detectors": "others, whose maps are averaged with its",
            "second_detector": "a detector that only watches",
            "image_reward": "a model that says how well an image fits its prompt",
            "offline": "real images with captions: a .zip, or .parquet",
            "start": "an adapter to go on from",
            "beside": "an adapter that becomes part of the base",
            "refresh_data": "labelled images that the detector came from (.zip)",
            "picture_prompts": "prompts of the pictures",
            "watch_prompts": "prompts that are watched",
        },
        words=frozenset({"sizes", "refresh_augmentation.unflipped"}),
        training_file="prompts",
        validation_file="watch_prompts",
        model="base",
        then=("export", "--run", "{out}", "--out", "{out}/export"),
        results=("export/*", "summary.json"),
        total="steps",
        wishes=WISHES,
        several=True,
        estimate="treat.estimate",
    ),
    "export": Method(
        does="an adapter as a LoRA file or merged into its base; a detector for any project",
        command=("export",),
        config="diffdoctor.export_settings",
        inputs={"run": "the job that made the adapter or detector", "base": "the base model"},
        words=frozenset({"step", "title", "author", "license", "base_model", "arm"}),
        training_file="run",
        model="base",
        place="export",
        proof="README.md",
        results=("export/*",),
        product="export",
    ),
    "flaw_highlighter": Method(
        does="learn to tell real images from generated ones; its Grad-CAM shows flaws",
        command=("detector", "train-highlighter"),
        config="detector.highlighter_settings",
        inputs={
            "data": "real and generated images: a .zip of a store, or of real/ and images/",
            "weights": "the network's ImageNet weights",
        },
        words=frozenset({"variant", "device"}),
        training_file="data",
        model="variant",
        results=("detector/*", "summary.json"),
        total="steps",
        wishes=WISHES,
    ),
    "self_refining": Method(
        does="train a base model on with its own flaws in sight",
        command=("self-refine",),
        config="treat.self_refining.settings",
        inputs={
            "base": "the base model",
            "data": "real images: a .zip, or .parquet",
            "highlighter": "the flaw highlighter, a job's",
        },
        words=frozenset({"device"}),
        training_file="data",
        model="base",
        results=("pipeline/*", "pipeline/*/*", "summary.json"),
        product="pipeline",
        total="steps",
        wishes=WISHES,
    ),
    "correct": Method(
        does="correct a base model's images while they are drawn, before and after from one seed",
        command=("correct",),
        config="diffdoctor.correction_settings",
        inputs={
            "base": "the base model",
            "prompts": "what to draw: .txt, .jsonl, .csv or .parquet; none for a base without",
            "detector": "the detector that leads, score_dynamics or bayes",
            "judges": "detectors that read the images, NAME=ID each",
            "calibration": "what `diffdoctor calibrate` found for the base (.json)",
            "real": "bayes: real images (.zip), with captions where the base reads prompts",
        },
        named=frozenset({"judges"}),
        otherwise={"detector": ("score_dynamics", "bayes")},
        words=frozenset({"set", "device"}),
        training_file="prompts",
        model="base",
        needs_training_file=False,
        results=("sheet.png", "acceleration.svg", "report.html", "summary.json", "masks/*.png"),
        total="n",
        wishes=("sample",),
    ),
    "data_round": Method(
        does="turns of the whole loop, from tags to the next detector, until it gets worse",
        command=("data", "round"),
        config="data_balancing.round_settings",
        inputs={
            "detector": "the first teacher",
            "labelled": "stores of the training data so far (.zip)",
            "held_out": "hard images with masks by people (.zip)",
            "base": "the base model that draws",
            "pool": "a store to take the first statistics from (.zip)",
            "second_detector": "where it and the teacher disagree is hard",
            "prompt_list": "a .jsonl of prompts with categories",
            "taxonomy": "categories of one's own (.yaml)",
        },
        words=frozenset({"device", "draw.dtype", "draw.licence"}),
        training_file="labelled",
        validation_file="held_out",
        model="base",
        place="rounds",
        proof="best.json",
        results=("rounds/best.json", "rounds/best/*", "rounds/round-*/training/detector/*"),
        product="rounds/best",
    ),
}
