"""`diffdoctor login`: a service's address and token, tried and kept for this person."""

import getpass
import sys

import core.config
from launch.client import DEFAULT, Client, Login, save_login


class Config(core.config.Config):
    """Keep the address and token of a service. The token is asked for, or read from a pipe."""

    url: str = DEFAULT
    """Address of the service, with http:// or https://."""


def main(config: Config) -> None:
    """Nothing is kept that the service does not accept."""
    if sys.stdin.isatty():
        token = getpass.getpass("token (empty if the service needs none): ").strip()
    else:
        token = sys.stdin.readline().strip()
    login = Login(config.url.rstrip("/"), token or None)
    with Client(*login) as client:
        client.jobs(limit=1)
    print(f"kept in {save_login(login)}")


if __name__ == "__main__":
    core.config.run_program(main, Config, prog="diffdoctor login")
