"""`diffdoctor files delete`: ids of files in; their room free again."""

from typing import Annotated

import tyro
from pydantic import Field

import core.config
from launch.commands.remote import Remote


class Config(Remote):
    """Delete files for good. One that a job uses which has not ended is refused."""

    files: Annotated[
        tuple[str, ...], tyro.conf.Positional, core.config.placed("FILE", several=True)
    ] = Field(min_length=1)
    """Their ids, as `diffdoctor files list` shows them."""


def main(config: Config) -> None:
    with config.client() as client:
        for one in config.files:
            client.delete_file(one)
            print(f"{one} is deleted")


if __name__ == "__main__":
    core.config.run_program(main, Config, prog="diffdoctor files delete")
