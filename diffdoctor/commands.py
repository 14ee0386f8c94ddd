"""Every command of `diffdoctor`: its program, a line that says what it does, and an example."""

from typing import NamedTuple


class Command(NamedTuple):
    """One program: the module with its `Config` and `main(config)`, and how to teach it."""

    module: str
    does: str
    example: str
    settings: str | None = None
    """The module of its `Config` alone, where that comes without torch: help, and mistakes in
    options, are then told at once."""


COMMANDS = {
    "demo": Command(
        "diffdoctor.demo",
        "the whole method on two cores: detector, treatment, judgement, export",
        "diffdoctor demo --quick --out runs/quick",
        settings="diffdoctor.demo_settings",
    ),
    "treat": Command(
        "treat.train",
        "train a LoRA adapter of a base model from a frozen detector's artifact map",
        "diffdoctor treat --config treat.yaml --steps 200 --out runs/treat",
        settings="treat.settings",
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
        settings="diffdoctor.evaluation_settings",
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
        settings="treat.self_refining.settings",
    ),
    "correct": Command(
        "diffdoctor.correction",
        "same seeds before and after a corrector that works while the base draws",
        "diffdoctor correct --base FOLDER --corrector asced --judges second=runs/second",
        settings="diffdoctor.correction_settings",
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
        settings="diffdoctor.export_settings",
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
        settings="detector.settings",
    ),
    "detector train-highlighter": Command(
        "detector.train_highlighter",
        "a classifier of real and generated images, whose Grad-CAM shows flaws",
        "diffdoctor detector train-highlighter --data photographs drawn --out runs/highlighter",
        settings="detector.highlighter_settings",
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
        settings="data_balancing.round_settings",
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
