"""`diffdoctor token create`: a person's name in; a token, seen this once, out."""

import sys
from typing import Literal

from pydantic import Field

import core.config
from launch.commands.of_root import OfRoot


class Config(OfRoot):
    """Make a token for a person or program. From then on the service asks everybody for one."""

    owner: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.@-]{0,63}$")
    """Whose jobs and files it reaches; several tokens may be of one owner."""
    scopes: tuple[Literal["read", "write"], ...] = ("read", "write")
    """`read` looks, `write` makes and changes."""
    days: float | None = Field(90.0, gt=0)
    """Until it expires; None: never."""


def main(config: Config) -> None:
    """The token alone goes to stdout, for a pipe."""
    token_id, token = config.tokens().create(config.owner, config.scopes, config.days)
    print(f"{token_id} of {config.owner}; it is shown this once:", file=sys.stderr)
    print(token)


if __name__ == "__main__":
    core.config.run_program(main, Config, prog="diffdoctor token create")
