"""What all commands that speak to a service share: its address, and how a job is shown."""

import datetime
from collections.abc import Mapping
from typing import Annotated, Any

import tyro
from pydantic import Field

import core.config
from launch.client import Client, read_login


class Remote(core.config.Config):
    """Which service is meant. Its token is never a word of a command line: `diffdoctor login`."""

    url: str | None = None
    """Its address (default: that of `diffdoctor login`, DIFFDOCTOR_URL, or this machine's)."""

    def client(self) -> Client:
        return Client(*read_login(self.url))


class OfJob(Remote):
    """One job of a service."""

    job: Annotated[str, tyro.conf.Positional, core.config.placed("JOB")] = Field(
        pattern=r"^ftjob-[0-9a-f]{24}$"
    )
    """Its id, as `diffdoctor jobs list` shows it."""


def line(job: Mapping[str, Any]) -> str:
    """A job in one line."""
    made = datetime.datetime.fromtimestamp(job["created_at"]).strftime("%Y-%m-%d %H:%M")
    state = "pausing" if job["pausing"] else job["status"]
    steps = f"{job['step'] or 0}/{job['steps']}" if job["steps"] else ""
    return f"{job['id']}  {made}  {job['method']['type']:<18}{state:<17}{steps}"
