"""`diffdoctor files list`: your uploads and your jobs' results, the newest first, one a line."""

import datetime

from pydantic import Field

import core.config
from launch.commands.remote import Remote


class Config(Remote):
    """List your files: id, time, bytes, purpose, name. Uploads (`fine-tune`) fill your room."""

    limit: int = Field(100, ge=1, le=10_000)
    """Files to show."""


def main(config: Config) -> None:
    with config.client() as client:
        for file in client.files(config.limit):
            made = datetime.datetime.fromtimestamp(file["created_at"]).strftime("%Y-%m-%d %H:%M")
            told = f"{made}  {file['bytes']:>13,}  {file['purpose']:<18}{file['filename']}"
            print(f"{file['id']}  {told}")


if __name__ == "__main__":
    core.config.run_program(main, Config, prog="diffdoctor files list")
