"""`diffdoctor jobs logs`: the end of what a job's program printed."""

import core.config
from launch.commands.remote import OfJob


class Config(OfJob):
    """Print the last 256 KiB of a job's log."""


def main(config: Config) -> None:
    with config.client() as client:
        print(client.log(config.job)[0], end="")


if __name__ == "__main__":
    core.config.run_program(main, Config, prog="diffdoctor jobs logs")
