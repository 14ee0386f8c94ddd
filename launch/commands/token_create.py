"""`diffdoctor token create`: a person's name in; a token, seen this once, out."""

import datetime
import sys
from typing import Literal

from pydantic import Field

import core.config
from launch.commands.of_root import OfRoot

LOCAL = "local"
"""Who owns what is made while there is no token (`launch.service.tokens.LOCAL`)."""


class Config(OfRoot):
    """Make a token for a person or program. From then on the service asks everybody for one."""

    owner: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.@-]{0,63}$")
    """Whose jobs and files it reaches; several tokens may be of one owner. What was made before
    there was any token belongs to `local`."""
    scopes: tuple[Literal["read", "write"], ...] = ("read", "write")
    """`read` looks, `write` makes and changes."""
    days: float | None = Field(90.0, gt=0)
    """Until it expires; None: never."""
    new: bool = False
    """Make the service's folder too, for a token before the first start."""


def main(config: Config) -> None:
    """The token alone goes to stdout, for a pipe."""
    tokens = config.tokens(config.new)
    first = not tokens.any()
    token_id, token = tokens.create(config.owner, config.scopes, config.days)
    until = datetime.datetime.now() + datetime.timedelta(days=config.days or 0)
    valid = "for good" if config.days is None else f"until {until:%Y-%m-%d %H:%M}"
    print(f"{token_id} of {config.owner}, valid {valid}; it is shown this once:", file=sys.stderr)
    if first and config.owner != LOCAL:
        told = f"jobs and files that were made without a token are reached by `--owner {LOCAL}`"
        print(told, file=sys.stderr)
    print(token)


if __name__ == "__main__":
    core.config.run_program(main, Config, prog="diffdoctor token create")
