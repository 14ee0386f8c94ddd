"""`diffdoctor jobs show`: all that the service knows of a job, as JSON."""

import json

import core.config
from launch.commands.remote import OfJob


class Config(OfJob):
    """Show a job with its settings, error, checkpoints and results."""


def main(config: Config) -> None:
    with config.client() as client:
        job = client.job(config.job)
        job["checkpoints"] = client.checkpoints(config.job)
    print(json.dumps(job, indent=2))


if __name__ == "__main__":
    core.config.run_program(main, Config, prog="diffdoctor jobs show")
