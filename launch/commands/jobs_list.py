"""`diffdoctor jobs list`: your jobs, the newest first, one a line."""

from pydantic import Field

import core.config
from launch.commands.remote import Remote, line


class Config(Remote):
    """List your jobs: id, time, method, state, steps."""

    limit: int = Field(20, ge=1, le=100)
    """Jobs to show, the newest first."""


def main(config: Config) -> None:
    with config.client() as client:
        for job in client.jobs(config.limit):
            print(line(job))


if __name__ == "__main__":
    core.config.run_program(main, Config, prog="diffdoctor jobs list")
