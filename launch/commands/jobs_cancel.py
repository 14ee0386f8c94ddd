"""`diffdoctor jobs cancel`: end a job for good."""

import core.config
from launch.commands.remote import OfJob, line


class Config(OfJob):
    """End a job for good; its run folder stays with the service."""


def main(config: Config) -> None:
    with config.client() as client:
        print(line(client.cancel(config.job)))


if __name__ == "__main__":
    core.config.run_program(main, Config, prog="diffdoctor jobs cancel")
