"""The `diffdoctor` command: words in, the program of one stage run; the exit code out.

0 done, 2 something a person can mend (one sentence says what), 1 anything else. A stage is
imported only when its command is called, so that `diffdoctor --help` costs no torch.
"""

import os
import sys
from collections.abc import Sequence
from difflib import get_close_matches
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import NamedTuple


class Command(NamedTuple):
    """One program: the module with its `Config` and `main(config)`, and how to teach it."""

    module: str
    does: str
    example: str


COMMANDS = {
    "demo": Command(
        "diffdoctor.demo",
        "the whole method on two cores: detector, treatment, judgement, export",
        "diffdoctor demo --quick --out runs/quick",
    ),
    "treat": Command(
        "treat.train",
        "train a LoRA adapter of a base model from a frozen detector's artifact map",
        "diffdoctor treat --config treat.yaml --steps 200 --out runs/treat",
    ),
    "estimate": Command(
        "treat.estimate",
        "memory and arithmetic that a treatment will need, by phase, without weights",
        "diffdoctor estimate --config treat.yaml --out runs/treat",
    ),
    "evaluate": Command(
        "diffdoctor.evaluation",
        "same prompts, same seeds: base against adapters, with intervals and a report",
        "diffdoctor evaluate --base FOLDER --adapters treated=runs/treat --prompts held_out.txt",
    ),
    "compare": Command(
        "treat.compare",
        "FID, KID, precision, recall and coverage of sets of images against real ones",
        "diffdoctor compare real drawn --features miniature/features",
    ),
    "self-refine": Command(
        "treat.self_refining.train",
        "train a base on with its own flaws in sight (self-refining diffusion)",
        "diffdoctor self-refine --base B --data shards --highlighter H --out runs/refined",
    ),
    "correct": Command(
        "diffdoctor.correction",
        "same seeds before and after a corrector that works while the base draws",
        "diffdoctor correct --base FOLDER --corrector asced --judges second=runs/second",
    ),
    "inpaint": Command(
        "treat.inpaint",
        "what a mask hides of images, drawn anew by a base without prompts (RePaint)",
        "diffdoctor inpaint --base FOLDER --images photographs --masks masks --out inpainted",
    ),
    "calibrate": Command(
        "treat.calibrate",
        "what ASCED leaves open (T_d, gamma), found for one base",
        "diffdoctor calibrate --base FOLDER --judges second=runs/second --out asced.json",
    ),
    "export": Command(
        "diffdoctor.export",
        "an adapter as a LoRA file or merged into its base; a detector for any project",
        "diffdoctor export --run runs/treat --out lora --step best",
    ),
    "verify": Command(
        "treat.verify",
        "faults of any LoRA file, and what each downstream reader makes of it",
        "diffdoctor verify lora/pytorch_lora_weights.safetensors --base FOLDER",
    ),
    "convert": Command(
        "treat.convert",
        "a LoRA file in other names, PEFT's or kohya's, without rounding",
        "diffdoctor convert lora.safetensors --to kohya --out for_comfyui.safetensors",
    ),
    "convert-base": Command(
        "treat.convert_base",
        "a guided-diffusion or improved-diffusion checkpoint as a base of diffusers",
        "diffdoctor convert-base ema.pt --image-size 64 --num-heads 4 --out base",
    ),
    "redraw": Command(
        "treat.redraw",
        "sound images as a base would finish them: broken ones whose mend is known",
        "diffdoctor redraw --base FOLDER --images photographs --out redrawn",
    ),
    "detector train": Command(
        "detector.train",
        "learn to see artifacts from images and masks",
        "diffdoctor detector train --data shards --out runs/detector",
    ),
    "detector train-highlighter": Command(
        "detector.train_highlighter",
        "a classifier of real and generated images, whose Grad-CAM shows flaws",
        "diffdoctor detector train-highlighter --data photographs drawn --out runs/highlighter",
    ),
    "detector evaluate": Command(
        "detector.evaluate",
        "measure a detector on a labelled set, by source and category",
        "diffdoctor detector evaluate --detector runs/detector --data shards/test",
    ),
    "detector diagnose": Command(
        "detector.diagnose",
        "artifact maps, overlays and a table for any image or folder of images",
        "diffdoctor detector diagnose photo.png --detector runs/detector --out diagnosis",
    ),
    "detector ensemble": Command(
        "detector.combine",
        "several detectors as one: the mean or the largest of their maps",
        "diffdoctor detector ensemble runs/first runs/second --out runs/both",
    ),
    "detector convert": Command(
        "detector.convert",
        "a SegFormer's weights from elsewhere, or the released ones, as a detector",
        "diffdoctor detector convert ad_pytorch_model.bin --out detectors/released",
    ),
    "detector sanity": Command(
        "detector.sanity",
        "does a detector tell a base model's own images from real photographs?",
        "diffdoctor detector sanity --detector D --real photographs --samples drawn",
    ),
    "detector fetch": Command(
        "detector.fetch",
        "the released DiffDoctor detector, from its public repository",
        "diffdoctor detector fetch --out detectors/released",
    ),
    "data import": Command(
        "data_balancing.import_data",
        "a published artifact data set, or a folder of one's own, into a store",
        "diffdoctor data import synthscars SynthScars --out store",
    ),
    "data check": Command(
        "data_balancing.check",
        "find broken pairs, copies and masks that cannot be right, with the cure",
        "diffdoctor data check store --keep sound_store",
    ),
    "data stats": Command(
        "data_balancing.stats",
        "count a store by source, category, generator, licence and size",
        "diffdoctor data stats store --json stats.json",
    ),
    "data preview": Command(
        "data_balancing.preview",
        "a contact sheet of images, labels and overlays",
        "diffdoctor data preview store --out preview.png --category hand",
    ),
    "data tag": Command(
        "data_balancing.tag",
        "what each image shows, as a multimodal model sees it",
        "diffdoctor data tag shards --out tags.jsonl --endpoint URL --model NAME",
    ),
    "data balance": Command(
        "data_balancing.balance",
        "categories that a detector judges oddly, with figures and pictures",
        "diffdoctor data balance shards --tags tags.jsonl --detector runs/detector --out balance",
    ),
    "data prompts": Command(
        "data_balancing.write_prompts",
        "diverse prompts for those categories, by a language model or a grammar",
        "diffdoctor data prompts --balance balance/balance.json --templates --out prompts.jsonl",
    ),
    "data synthesize": Command(
        "data_balancing.synthesize",
        "images of any base for a list of prompts, as shards without labels",
        "diffdoctor data synthesize --base FOLDER --prompts prompts.jsonl --out store",
    ),
    "data hard-cases": Command(
        "data_balancing.hard_cases",
        "which images people should label next, evenly over the categories",
        "diffdoctor data hard-cases store --detector runs/detector --n 2000 --out hard",
    ),
    "data annotate": Command(
        "data_balancing.annotate_out",
        "hand images and mask guesses to Label Studio, CVAT, COCO or PNG tools",
        "diffdoctor data annotate shards --out to_annotate --tool label_studio",
    ),
    "data annotated": Command(
        "data_balancing.annotate_in",
        "take annotators' masks back: labelled shards, and how far they agree",
        "diffdoctor data annotated export.json --store shards --out labelled",
    ),
    "data pseudo-label": Command(
        "data_balancing.pseudo_label",
        "masks for unlabelled samples by a trained detector, shard by shard",
        "diffdoctor data pseudo-label store --detector runs/detector --out pseudo",
    ),
    "data round": Command(
        "data_balancing.round",
        "turns of the whole loop, from tags to the next detector, until it gets worse",
        "diffdoctor data round --detector D --labelled S --held-out H --base B --out runs/rounds",
    ),
    "serve": Command(
        "launch.commands.serve",
        "jobs over HTTP, as OpenAI's clients ask for them; running jobs outlive it",
        "diffdoctor serve --root service --models newest=miniature/bases/newest",
    ),
    "token create": Command(
        "launch.commands.token_create",
        "a token for a person or program; from then on the service asks for one",
        "diffdoctor token create --root service --owner ada",
    ),
    "token list": Command(
        "launch.commands.token_list",
        "who may ask a service, until when",
        "diffdoctor token list --root service",
    ),
    "token revoke": Command(
        "launch.commands.token_revoke",
        "a token that lets nobody in any more",
        "diffdoctor token revoke token-0123456789abcdef --root service",
    ),
    "login": Command(
        "launch.commands.login",
        "keep a service's address and token for the commands below",
        "diffdoctor login --url https://train.example.org",
    ),
    "jobs create": Command(
        "launch.commands.jobs_create",
        "ask a service for a job; files of this machine are uploaded",
        "diffdoctor jobs create --method pixel_reward --model newest --training-file p.txt",
    ),
    "jobs list": Command(
        "launch.commands.jobs_list",
        "your jobs, the newest first",
        "diffdoctor jobs list",
    ),
    "jobs show": Command(
        "launch.commands.jobs_show",
        "a job with its settings, error, checkpoints and results",
        "diffdoctor jobs show ftjob-0123456789abcdef01234567",
    ),
    "jobs logs": Command(
        "launch.commands.jobs_logs",
        "the end of what a job printed",
        "diffdoctor jobs logs ftjob-0123456789abcdef01234567",
    ),
    "jobs watch": Command(
        "launch.commands.jobs_watch",
        "a job's events as they come, to its end",
        "diffdoctor jobs watch ftjob-0123456789abcdef01234567",
    ),
    "jobs cancel": Command(
        "launch.commands.jobs_cancel",
        "end a job for good",
        "diffdoctor jobs cancel ftjob-0123456789abcdef01234567",
    ),
    "jobs pause": Command(
        "launch.commands.jobs_pause",
        "have a job save and stop",
        "diffdoctor jobs pause ftjob-0123456789abcdef01234567",
    ),
    "jobs resume": Command(
        "launch.commands.jobs_resume",
        "let a paused job go on where it saved",
        "diffdoctor jobs resume ftjob-0123456789abcdef01234567",
    ),
    "jobs sample": Command(
        "launch.commands.jobs_sample",
        "have a running job draw its pictures now",
        "diffdoctor jobs sample ftjob-0123456789abcdef01234567",
    ),
    "jobs save": Command(
        "launch.commands.jobs_save",
        "have a running job save a checkpoint now",
        "diffdoctor jobs save ftjob-0123456789abcdef01234567",
    ),
    "jobs download": Command(
        "launch.commands.jobs_download",
        "what a job made, verified, into a folder",
        "diffdoctor jobs download ftjob-0123456789abcdef01234567 --out result",
    ),
    "files list": Command(
        "launch.commands.files_list",
        "your uploads and your jobs' results, the newest first",
        "diffdoctor files list",
    ),
    "files delete": Command(
        "launch.commands.files_delete",
        "delete files of yours, which makes room",
        "diffdoctor files delete file-0123456789abcdef01234567",
    ),
    "miniature render": Command(
        "miniature.render",
        "draw valid images of the small world and their prompts",
        "diffdoctor miniature render --n 100 --out renders",
    ),
    "miniature label": Command(
        "miniature.label",
        "play the human annotator: the oracle's soft masks for a folder of images",
        "diffdoctor miniature label FOLDER",
    ),
    "miniature build": Command(
        "miniature.build",
        "build a base model (flux, sdxl, kolors, ddpm, ldm) from nothing but the law",
        "diffdoctor miniature build --out bases",
    ),
    "miniature features": Command(
        "miniature.learn_features",
        "train the feature network that sets of the miniature's images are compared by",
        "diffdoctor miniature features --out runs/features",
    ),
    "miniature sample": Command(
        "miniature.sample",
        "images of a base model for prompts of the small world",
        "diffdoctor miniature sample --base newest --n 16 --out samples",
    ),
}
HELP = {"-h", "--help", "help"}


def usage(prefix: str = "") -> str:
    """One line and one example for every command that begins with `prefix`."""
    chosen = {name: one for name, one in COMMANDS.items() if name.startswith(prefix)}
    lines = [
        "diffdoctor finds the artifacts of image diffusion models and treats the model.",
        "",
        "usage: diffdoctor COMMAND [OPTIONS]      diffdoctor COMMAND --help lists the options",
        "",
    ]
    wide = max(map(len, chosen)) + 2
    for name, one in chosen.items():
        lines += [f"  {name:<{wide}}{one.does}", f"  {'':<{wide}}$ {one.example}"]
    return "\n".join(
        [*lines, "", "New here? `diffdoctor demo` shows it all in six to ten minutes."]
    )


def find(words: Sequence[str]) -> tuple[str, list[str]] | None:
    """The command that the first one or two words name, and the words left for its options."""
    for count in (2, 1):
        name = " ".join(words[:count])
        if len(words) >= count and name in COMMANDS:
            return name, list(words[count:])
    return None


def suggestion(words: Sequence[str]) -> str:
    """One sentence for a command that does not exist, with the closest that does."""
    asked = " ".join(word for word in words[:2] if not word.startswith("-"))
    close = get_close_matches(asked, COMMANDS, n=1, cutoff=0.5) or get_close_matches(
        words[0], COMMANDS, n=1, cutoff=0.5
    )
    hint = f"did you mean `diffdoctor {close[0]}`?" if close else "see `diffdoctor --help`."
    return f"diffdoctor has no command '{asked or words[0]}'; {hint}"


def installed_version() -> str:
    try:
        return version("diffdoctor")
    except PackageNotFoundError:  # run from a checkout that was never installed
        return "not installed"


def main(argv: Sequence[str] | None = None) -> int:
    words = list(sys.argv[1:] if argv is None else argv)
    if words and not HELP & {*words}:
        return obey(words)
    try:  # help alone may be cut short (`--help | head`): what breaks a program's pipe is its own
        try:
            return obey(words)
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the last flush goes there
        return 0


def obey(words: list[str]) -> int:
    """Run what the words name; the exit code."""
    groups = {name.split()[0] for name in COMMANDS if " " in name}
    if not words or words[0] in HELP:
        print(usage())
        return 0
    if words == ["--version"]:
        print(installed_version())
        return 0
    if words[0] in groups and (len(words) == 1 or words[1] in HELP):
        print(usage(words[0]))
        return 0
    found = find(words)
    if found is None:
        print(suggestion(words), file=sys.stderr)
        return 2
    name, options = found
    return run(COMMANDS[name], name, options)


def run(command: Command, name: str, options: Sequence[str]) -> int:
    """Import the program and hand it its options; `core.config` parses, reports and exits."""
    from core.config import run_program

    module = import_module(command.module)
    run_program(module.main, module.Config, list(options), prog=f"diffdoctor {name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
