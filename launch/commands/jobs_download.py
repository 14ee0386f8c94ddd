"""`diffdoctor jobs download`: what a job made, verified, into a folder."""

from pathlib import Path

import core.config
from launch.commands.remote import OfJob


class Config(OfJob):
    """Download a job's results: of a treatment the LoRA file with its card, of a detector its
    folder."""

    out: Path
    """Folder for them."""


def main(config: Config) -> None:
    with config.client() as client:
        for path in client.download(config.job, config.out):
            print(path)


if __name__ == "__main__":
    core.config.run_program(main, Config, prog="diffdoctor jobs download")
