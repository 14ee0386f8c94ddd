"""`diffdoctor jobs watch`: a job's events as they come; its end is the exit code."""

import core.config
from launch.commands.remote import OfJob, line


class Config(OfJob):
    """Follow a job to its end. Ctrl-C stops the watching, not the job."""


def main(config: Config) -> int:
    """0 where it succeeded, else 1."""
    with config.client() as client:
        client.job(config.job)  # a wrong id is told at once
        for event in client.watch(config.job):
            mark = "" if event["level"] == "info" else f"{event['level']}: "
            print(f"{mark}{event['message']}", flush=True)
        job = client.job(config.job)
    print(line(job))
    return int(job["status"] != "succeeded")


if __name__ == "__main__":
    core.config.run_program(main, Config, prog="diffdoctor jobs watch")
