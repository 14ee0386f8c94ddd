"""`diffdoctor token revoke`: a token's id in; nobody is let in by it any more."""

from typing import Annotated

import tyro

import core.config
from core.errors import UserError
from launch.commands.of_root import OfRoot


class Config(OfRoot):
    """Revoke a token, at once and for good."""

    token: Annotated[str, tyro.conf.Positional, core.config.placed("TOKEN")]
    """Its id (not the token itself), as `diffdoctor token list` shows it."""


def main(config: Config) -> None:
    if not config.tokens().revoke(config.token):
        raise UserError(f"there is no valid token {config.token}; see `diffdoctor token list`.")
    print(f"{config.token} is revoked")


if __name__ == "__main__":
    core.config.run_program(main, Config, prog="diffdoctor token revoke")
