"""Every setting of a treatment, with what cannot go together.

Apart from `treat.train`, so that the method there fits one screen.
"""

import math
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

import core.config
from base_models.names import Quantisation
from detector.augmentation import Augmentation
from detector.names import OptimizerName

NO_DETECTOR = "pixel_weight needs a detector: give --detector, or --pixel-weight 0."

Rule = Literal["last", "tail", "uniform", "random"]
"""See `treat.choice`."""
Selection = Literal["threshold", "root", "area", "all", "max"]
Number = Annotated[int, Field(ge=1, strict=True)]
Share = Annotated[float, Field(gt=0, le=1, strict=True)]
Steps = Annotated[
    Number | Share | None,
    core.config.told("write a number of steps (3), or their share above 0 and up to 1 (0.25)"),
]
Sides = Annotated[
    str,
    Field(pattern=r"^[1-9][0-9]{0,4}x[1-9][0-9]{0,4}$"),
    core.config.told("write HEIGHTxWIDTH in pixels, such as 768x512, each at most 99999"),
]
Listed = Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)]


class Config(core.config.Config):
    """Settings of one treatment."""

    presets: ClassVar[Path | None] = Path(__file__).parent / "presets"

    base: str
    """Pipeline folder or Hub id of the base model. An id may name a branch, tag or commit:
    owner/name@revision."""
    prompts: Path
    """What to draw while learning: .txt (one a line), or .jsonl, .csv or .parquet with `prompt`."""
    out: Path
    """Run folder; the same command resumes it."""
    detector: Path | None = None
    """Folder of the detector whose map is lowered."""
    further_detectors: tuple[Path, ...] = ()
    """Folders of others: the mean of all maps is lowered."""
    second_detector: Path | None = None
    """Folder of a detector that is never learnt from: it chooses the step that is exported, the
    latest that it does not find worse, beyond chance, than the one it likes best."""
    image_reward: Path | None = None
    """Folder of a CLIP that says how well an image fits its prompt: CLIP itself, PickScore or HPS
    v2, in transformers' format. It guards the prompt; with an `image_weight` it also teaches."""
    offline: Path | None = None
    """Real images with captions: a folder, shards, or Parquet files."""
    offline_limit: int | None = Field(None, ge=1)
    """Use at most so many of them."""
    seed: int = Field(0, ge=0)
    """Of weights, noise, order and prompts."""
    steps: int = Field(400, ge=1)
    """Updates of the adapters."""
    batch: int = Field(4, ge=1)
    """Images of a micro-batch on one process. Batch x accumulation x processes are the images of an
    update; how many those are may not change in a run that goes on."""
    accumulation: int = Field(1, ge=1)
    """Micro-batches of an update."""

    height: int | None = Field(None, ge=8)
    """Of what is drawn, in pixels. None: the base's own. See `sizes`."""
    width: int | None = Field(None, ge=8)
    """Of what is drawn, in pixels. None: the base's own."""
    sizes: tuple[Sides, ...] = ()
    """Further sizes, each HEIGHTxWIDTH: an update draws images of one of all, and a real image is
    fitted to the one nearest to its shape. What is watched has `height` and `width`; so have the
    real images that are looked at, if any are near to it."""
    sampling_steps: int | None = Field(None, ge=1)
    """T, the steps of one drawing. None: 4 of FLUX.1-schnell, 28 of dev, 25 of any other family."""
    last: Steps = None
    """K, the steps that carry gradient: a number (3), or their share of T (0.25, the default),
    rounded up."""
    learning: Rule | Listed = "last"
    """Which K: `last`; `tail`, the last k for a random k up to K; `uniform`; `random`; or step
    numbers, counted from 0 at pure noise."""
    redraws: int = Field(0, ge=0)
    """0: the steps of the drawing itself learn. Else Direct-Align: that many times one of them
    learns, taken anew from the finished image under fresh noise; gamma then plays no part. Into
    step 0 goes noise alone, which says nothing of the image: list the others in `learning`."""
    guidance: float | None = Field(None, ge=0)
    """Scale of the base's guidance, of which 1 is none where the empty prompt guides. None: what
    its pipeline has by default (SDXL and Kolors 5, FLUX.1-dev 3.5)."""
    learn_empty: bool = True
    """Where the empty prompt guides: pass the gradient through its half of a step as well, as
    back-propagation has it, or (`--no-learn-empty`) through the prompt's half only. The images are
    the same, and so is the memory."""
    gamma: float = Field(1.0, ge=0, le=1)
    """Share of the gradient that passes back through the network's input. 1 is back-propagation;
    at 0 each step learns its own share, with much less noise."""
    recompute: bool = True
    """Compute the steps that learn again (little memory), or keep their graphs (faster)."""
    two_pass_decode: bool = False
    """Decode twice, so that detector and decoder are never in memory together."""
    checkpoint_blocks: bool = False
    """Keep only what enters each block of the network: much less memory, for
    one more forward pass of each step that learns."""
    checkpoint_decoder: bool = False
    """The same for the autoencoder's decoder."""
    compile_blocks: bool = False
    """Compile the network's blocks (`torch.compile`): faster, and leaner where graphs are kept. The
    first steps wait a minute or more for it; figures differ by rounding; a CPU needs a C++
    compiler."""
    check_memory: bool = True
    """Count first what is needed (`diffdoctor estimate`), and refuse what fits neither the GPU nor,
    without one, the machine's memory."""

    views: int = Field(1, ge=1)
    """Perturbed copies of each image that the reward is averaged over, against a detector that is
    deceived; each costs a pass of the detector and its memory. 1: the image itself."""
    selection: Selection = "threshold"
    """Which pixels of a map count, and for how much: the mean of those above the threshold (the
    paper's); their sum over the root of their number, by which images pull equally hard whatever
    the size of an artifact; over the image's area; all pixels; the worst one."""
    pixel_penalty: Literal["probability", "log"] = "probability"
    """What a pixel costs: its probability p (the paper's), or -log(1 - p), whose gradient does not
    fade where the detector is sure."""
    threshold: float = Field(0.1, ge=0, lt=1)
    """Probability above which a pixel counts, in the loss and in the lock's mask."""
    pixel_weight: float = Field(1.0, ge=0)
    """0: no detector teaches; with the offline term alone this is the control."""
    image_weight: float = Field(0.0, ge=0)
    """Weight of the image reward (a cosine), which is raised."""
    offline_weight: float = Field(0.25, ge=0)
    """Weight of the flow or noise loss on real images, which holds the model; 0: none."""
    offline_target: Literal["images", "base"] = "images"
    """What that loss asks for: the way to the real image (the paper's), or what the base itself
    predicts there, by which the images' own sample moves nothing. The latter costs one more pass
    without gradient."""
    lock_weight: float = Field(0.0, ge=0)
    """Weight of the change outside what the detector marks on the base's image."""
    lock_inside: float = Field(0.0, ge=0, le=1)
    """Share of that weight within what is marked: of two ways to mend, the nearer one."""
    lock_dilation: int = Field(3, ge=0)
    """Pixels that the lock's mask is grown by."""

    start: Path | None = None
    """Adapters to go on from: a run folder, one of its checkpoints, or a LoRA file in PEFT names.
    Of the same rank and targets."""
    beside: Path | None = None
    """The same, but frozen: it becomes part of the base, and the new adapters belong beside it."""
    rank: int = Field(16, ge=1, le=1 << 14)  # no layer is wider
    """Of the adapters; their scale (alpha) is the same number."""
    targets: Literal["attention", "attention+mlp"] = "attention+mlp"
    """What carries adapters."""
    learning_rate: float = Field(1e-4, gt=0)
    """AdamW's highest."""
    decay: Literal["constant", "linear"] = "constant"
    """The learning rate over the steps; linear ends at zero."""
    weight_decay: float = Field(0.1, ge=0)
    """AdamW's."""
    clip: float = Field(5.0, gt=0)
    """Largest norm of an update's gradient."""
    mixed_precision: Literal["no", "bf16"] = "no"
    """`bf16` computes in half precision; the adapters stay in float32."""
    base_dtype: Literal["float32", "bfloat16"] = "float32"
    """Of the frozen weights. A base in bfloat16 computes in it, as its pipeline does."""
    quantise: Quantisation = "no"
    """The frozen network's weights in fewer bits: `int8` or `fp8` (half of bfloat16's memory), or
    `nf4` (about a quarter). The adapters stay in float32."""

    annotator: tuple[str, ...] = ()
    """Command that labels a folder (see data_balancing/annotator_command.py), for the refreshes."""
    refresh_every: int = Field(0, ge=0)
    """Updates between two refreshes of the detector; 0: none."""
    refresh_images: int = Field(64, ge=1)
    """Images that the adapters draw for one, and the annotator labels."""
    refresh_steps: int = Field(100, ge=1)
    """Steps of the detector in one refresh, 16 images each."""
    refresh_rate: float = Field(2e-4, gt=0)
    """Learning rate at a refresh's start; it falls to zero."""
    refresh_loss: Literal["mse", "bce"] = "mse"
    """The loss that the detector was trained with."""
    refresh_optimizer: OptimizerName = "adamw"
    """What moves the detector in a refresh; `muon` for one that was trained with it."""
    refresh_augmentation: Augmentation = Augmentation()
    """How the labelled images are varied meanwhile: as when the detector was trained."""
    refresh_data: tuple[Path, ...] = ()
    """Shards the detector came from, mixed half and half with the new labels."""

    checkpoint_every: int = Field(50, ge=1)
    """Updates; what an interruption costs at most."""
    picture_every: int = Field(50, ge=0)
    """Updates between two sheets of pictures; 0: none."""
    picture_prompts: Path | None = None
    """Prompts of the pictures; the first eight that are watched by default."""
    watch_every: int = Field(25, ge=0)
    """Updates between two looks at held-out prompts; 0: none."""
    watch_images: int = Field(32, ge=1)
    """How many prompts are watched. The more, the better can the second detector tell steps apart;
    below 16 the lowest score is exported, be it chance."""
    watch_prompts: Path | None = None
    """File of the prompts that are watched, from its first line on. None: the last lines of
    `prompts`, at most a fifth of them. Nothing that is watched is learnt from, so a list of few
    different prompts had better have this."""
    guard: Literal["stop", "warn", "off"] = "stop"
    """What to do where the watched images collapse (`treat/guard.py`): blurred, grey, alike, deaf
    to the prompt, worse to the second detector; where the pixel loss selects more than of the
    base's images, or nothing any more while the second detector still would; where the adapters
    run away. A stopped run keeps the step to export of the looks before, and fails where none was
    sound."""
    tolerance: float = Field(0.6, gt=0)
    """How far a meter's mean may move: in spreads of that meter among the base's images. At 0.6
    the selected pixels may fall by 45 points more than the second detector's, and the adapters
    grow 1.15 times as fast as up to the first look; both in proportion."""
    patience: int = Field(0, ge=0)
    """Looks without a lower second score after which to stop; 0: never."""
    offline_rise: float = Field(0.2, ge=0)
    """How much the loss on held-out real images may rise before a step cannot be exported."""

    @model_validator(mode="after")
    def _steps_agree(self) -> "Config":
        total = self.sampling_steps or math.inf  # until the base has been asked
        listed = () if isinstance(self.learning, str) else self.learning
        if isinstance(self.last, int) and self.last > total:
            raise ValueError(
                f"last is {self.last}, more than the {total} sampling_steps: lower it, or set more "
                "of them"
            )
        if len(set(listed)) < len(listed):
            raise ValueError(f"learning names a step twice: {', '.join(map(str, listed))}")
        if beyond := [step for step in listed if step >= total]:
            raise ValueError(
                f"learning names step {', '.join(map(str, beyond))}, and the {total} "
                f"sampling_steps are 0 to {total - 1}: list these, or set more of them"
            )
        if listed and self.last is not None:
            raise ValueError("learning lists the steps: leave last out")
        if self.redraws and (0 in listed or total == 1):
            raise ValueError(
                "a redraw of step 0 begins with noise alone, which says nothing of the image: "
                "list later steps in learning, or set redraws to 0"
            )
        return self

    @model_validator(mode="after")
    def _terms_agree(self) -> "Config":
        if self.redraws and self.lock_weight:
            raise ValueError(
                "the lock holds an image to the base's own drawing, which a redraw is not: "
                "set redraws or lock_weight to 0"
            )
        if self.guidance is not None and self.guidance <= 1 and not self.learn_empty:
            raise ValueError(
                "without guidance the empty prompt is not asked: leave --no-learn-empty out"
            )
        if not self.rewarded and self.offline_target == "base":
            raise ValueError(
                "without a reward nothing leaves the base, and offline_target base asks for "
                "nothing else: leave it out"
            )
        if not self.rewarded and not self.offline_weight:
            raise ValueError(
                "pixel_weight, image_weight and offline_weight are all 0: nothing would be learnt"
            )
        if self.image_weight and self.image_reward is None:
            raise ValueError("image_weight needs an image_reward: name its folder")
        if self.lock_weight and not self.pixel_weight:
            raise ValueError(
                "the lock holds what a detector does not mark, and without pixel_weight none "
                "marks: set lock_weight to 0"
            )
        if self.compile_blocks and self.quantise in ("int8", "fp8"):
            raise ValueError(
                f"torch.compile finds no gradient past the {self.quantise} weights of torchao: set "
                "quantise to nf4 or no, or leave compile_blocks out"
            )
        if self.views > 1 and not self.pixel_weight:
            raise ValueError(
                "views are what a detector is shown, and without pixel_weight it is shown "
                "nothing: set views to 1"
            )
        if self.offline_weight and self.offline is None:
            raise ValueError("give real images as offline, or set offline_weight to 0")
        if self.refresh_every and not (self.annotator and self.detector):
            raise ValueError("refresh_every needs an annotator and a detector")
        if self.further_detectors and (self.refresh_every or not self.detector):
            raise ValueError(
                "further_detectors come beside a detector, and none of several is refreshed: give "
                "detector, and set refresh_every to 0"
            )
        if self.patience and not (self.second_detector and self.watch_every):
            raise ValueError("patience needs a second_detector and watch_every")
        return self

    @property
    def rewarded(self) -> bool:
        """Whether anything is drawn to learn from."""
        return bool(self.pixel_weight or self.image_weight)

    @property
    def pixel_numbers(self) -> dict[str, Any]:
        """What `treat.terms.RewardTerm` takes."""
        return {
            "weight": self.pixel_weight,
            "selection": self.selection,
            "threshold": self.threshold,
            "penalty": self.pixel_penalty,
        }

    @property
    def lock_numbers(self) -> dict[str, Any]:
        """What `treat.terms.lock_to_base` takes."""
        return {
            "weight": self.lock_weight,
            "share": self.lock_inside,
            "threshold": self.threshold,
            "dilation": self.lock_dilation,
        }

    @property
    def total_steps(self) -> int:
        """T, of settings that are whole (`treat.checks.whole`)."""
        if self.sampling_steps is None:
            raise ValueError("sampling_steps are the base's own: ask treat.checks.whole for them")
        return self.sampling_steps

    @property
    def gradient_steps(self) -> int:
        """K; where the steps are listed, their number."""
        if not isinstance(self.learning, str):
            return len(self.learning)
        return number_of(self.last, self.total_steps)


def number_of(last: int | float | None, total: int) -> int:
    """K: a number of steps as it is, a fraction of `total` (a quarter by default) rounded up."""
    if isinstance(last, int):
        return last
    return max(1, math.ceil((last or 0.25) * total - 1e-9))
