"""The settings of a treatment in; what it is made of out: model, detectors, scorer, ledger.

`check` finds what can be wrong with them before anything heavy is opened.
"""

import torch
from accelerate import PartialState

from base_models.checkpointing import recompute_blocks
from base_models.compilation import check_compilation, compile_blocks
from base_models.guidance import check_guidance, guidance_options
from base_models.layout import decoder_in_channels_last
from base_models.load import load_base
from base_models.quantise import check_quantisation, quantise
from base_models.sizes import check_size, check_steps
from core import seeds as seeding
from core.contracts import DiffusionModel
from core.errors import UserError
from core.run import Run
from detector.ensemble import ensemble
from detector.segformer import SegformerDetector, freeze
from detector.storage import open_detector
from treat.adapter import check_adapters, fuse, pin, read_adapter, take_up
from treat.best import Best
from treat.checks import check_detectors, check_offline, check_refreshes, every_size
from treat.estimate import check_fits
from treat.guard import Guard
from treat.image_reward import ImageReward, check_reward, load_reward
from treat.ledger import Ledger
from treat.lora import add_lora
from treat.offline import RealRows, by_size, cache_offline, read_offline
from treat.refresh import Refresher
from treat.settings import NO_DETECTOR, Config
from treat.shard import check_sharding, shard, sharded
from treat.texts import Split, Texts, encode_texts, split_prompts
from treat.update import LORA, Update
from treat.watch import DetectorFor, Resting, Watcher, always


def check(config: Config, given: DetectorFor | None, place: PartialState) -> None:
    """Everything that can be wrong, before anything heavy; raises `UserError`."""
    prompts = split(config).train
    for size in every_size(config):
        check_size(config.base, *size)
    check_steps(config.base, config.total_steps)
    check_guidance(config.base, config.guidance, config.learn_empty)
    check_sharding(config.quantise, config.compile_blocks)
    check_quantisation(config.quantise)
    if config.compile_blocks:
        check_compilation(place.device or torch.device("cpu"))
    start, beside = (read_adapter(a) if a else None for a in (config.start, config.beside))
    check_adapters(config.base, config.rank, config.targets, start=start, beside=beside)
    check_detectors(config)
    if config.refresh_every and given is not None:
        raise UserError("Only the config's own detector can be refreshed: set refresh_every to 0.")
    check_refreshes(config)
    if config.image_reward:
        check_reward(config.image_reward)
    if given is not None and config.detector is not None:
        raise UserError("A reward is given, and teaches in place of --detector: leave that out.")
    if config.pixel_weight and given is None and config.detector is None:
        raise UserError(NO_DETECTOR)
    if config.check_memory and place.is_main_process and not given:
        check_fits(config, place.device)
    if config.pixel_weight and given and not given(prompts[:1]).differentiable:
        raise UserError(
            "This detector carries no gradient from its map to the image, and a treatment learns "
            "from nothing else: give one that is differentiable, such as a trained SegFormer."
        )
    check_offline(config, decode=place.is_main_process)


def split(config: Config) -> Split:
    shown = config.watch_images, config.picture_prompts, config.watch_prompts
    return split_prompts(config.prompts, *shown)


def open_model(
    config: Config, place: PartialState, device: torch.device
) -> tuple[DiffusionModel, Texts, list[RealRows]]:
    """The base with its adapters; prompts and real images encoded once, into the run folder."""
    beside = read_adapter(config.beside) if config.beside else None
    if beside is not None and place.is_main_process:
        pin(config.out / "beside.json", beside.digest)
    guiding = guidance_options(config.guidance, config.learn_empty)
    model = load_base(config.base, dtype=getattr(torch, config.base_dtype), **guiding)
    model.encoders_to(device)
    recompute_blocks(model, config.checkpoint_blocks, config.checkpoint_decoder)
    cache, real = config.out / "cache", []
    with place.main_process_first():
        texts = encode_texts(cache, model, config.base, split(config), device)
        if config.offline:
            images = read_offline(config.offline, config.offline_limit)
            for size, near in by_size(cache, images, every_size(config)).items():
                rows = cache_offline(cache, model, config.base, near, *size)
                real.append(RealRows(rows, near.captions, device, hold=not real))
    model.drop_text_encoders()
    if beside is not None:
        fuse(model.network, beside)
    targets = model.lora_targets(config.targets)
    add_lora(model.network, config.rank, targets, seeding.mix(config.seed, LORA))
    if config.start:
        take_up(model.network, read_adapter(config.start))
    quantise(model.network, config.quantise)
    if sharded():
        shard(model.network)
    model.to(device)
    decoder_in_channels_last(model)
    if config.compile_blocks:
        compile_blocks(model.network)
    return model, texts, real


def open_detectors(
    config: Config, device: torch.device, given: DetectorFor | None
) -> dict[str, DetectorFor]:
    """`reward`, which is learnt from, and `second`, which only looks and rests between; frozen."""
    detectors = {} if given is None else {"reward": given}
    taught = [config.detector, *config.further_detectors]
    if given is None and any(taught):
        opened = [freeze(open_detector(folder)).to(device) for folder in taught if folder]
        detectors["reward"] = always(ensemble(opened))
    if config.second_detector:
        detectors["second"] = always(Resting(freeze(open_detector(config.second_detector))))
    return detectors


def open_scorer(config: Config, device: torch.device) -> ImageReward | Resting | None:
    if config.image_reward is None:
        return None
    scorer = load_reward(config.image_reward, getattr(torch, config.base_dtype))
    return scorer.to(device) if config.image_weight else Resting(scorer)


def open_ledger(config: Config, run: Run, update: Update, watcher: Watcher) -> Ledger:
    refresher = None
    detector = watcher.detectors["reward"]([]) if config.refresh_every else None
    if isinstance(detector, SegformerDetector):
        refresher = Refresher(
            run.folder / "refresh",
            detector,
            config.refresh_data,
            config.annotator,
            every=config.refresh_every,
            images=config.refresh_images,
            tuning={
                "steps": config.refresh_steps,
                "learning_rate": config.refresh_rate,
                "loss": config.refresh_loss,
                "optimizer": config.refresh_optimizer,
                "augmentation": config.refresh_augmentation,
            },
            seed=config.seed,
        )
    return Ledger(
        run,
        watcher.sampler.model.network,
        update,
        watcher,
        refresher,
        best=Best(config.offline_rise),
        guard=Guard(config.tolerance) if config.guard != "off" else None,
        steps=config.steps,
        stop_at_collapse=config.guard == "stop",
        checkpoint_every=config.checkpoint_every,
        picture_every=config.picture_every,
        watch_every=config.watch_every,
        patience=config.patience,
        together=sharded(),
    )
