"""`diffdoctor jobs pause`: have a job save and stop."""

import core.config
from launch.commands.remote import OfJob, line


class Config(OfJob):
    """Have a job save and stop; it can be resumed."""


def main(config: Config) -> None:
    with config.client() as client:
        print(line(client.pause(config.job)))


if __name__ == "__main__":
    core.config.run_program(main, Config, prog="diffdoctor jobs pause")
