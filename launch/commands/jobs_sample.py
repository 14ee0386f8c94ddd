"""`diffdoctor jobs sample`: have a running job draw its pictures now."""

import core.config
from launch.commands.remote import OfJob, line


class Config(OfJob):
    """Have a running job draw its pictures after the step it is in."""


def main(config: Config) -> None:
    with config.client() as client:
        print(line(client.sample(config.job)))


if __name__ == "__main__":
    core.config.run_program(main, Config, prog="diffdoctor jobs sample")
