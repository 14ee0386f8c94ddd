"""`diffdoctor jobs resume`: let a paused job go on."""

import core.config
from launch.commands.remote import OfJob, line


class Config(OfJob):
    """Queue a paused job again; it goes on where it saved."""


def main(config: Config) -> None:
    with config.client() as client:
        print(line(client.resume(config.job)))


if __name__ == "__main__":
    core.config.run_program(main, Config, prog="diffdoctor jobs resume")
