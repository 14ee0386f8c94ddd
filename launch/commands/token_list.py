"""`diffdoctor token list`: who may ask; no token itself, which nobody keeps."""

import datetime
import time

import core.config
from launch.commands.of_root import OfRoot


class Config(OfRoot):
    """List the tokens of a service: id, owner, scopes, state."""


def main(config: Config) -> None:
    for row in config.tokens().all():
        made = datetime.date.fromtimestamp(row["created_at"])
        expired = row["expires_at"] is not None and row["expires_at"] <= time.time()
        state = "revoked" if row["revoked_at"] else "expired" if expired else "valid"
        print(f"{row['id']}  {made}  {state:<9}{','.join(row['scopes']):<12}{row['owner']}")


if __name__ == "__main__":
    core.config.run_program(main, Config, prog="diffdoctor token list")
