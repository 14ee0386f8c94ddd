"""`diffdoctor jobs save`: have a running job save a checkpoint now."""

import core.config
from launch.commands.remote import OfJob, line


class Config(OfJob):
    """Have a running job save a checkpoint after the step it is in, and go on."""


def main(config: Config) -> None:
    with config.client() as client:
        print(line(client.save(config.job)))


if __name__ == "__main__":
    core.config.run_program(main, Config, prog="diffdoctor jobs save")
