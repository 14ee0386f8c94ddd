"""What the commands of a service's operator share: its root folder and database."""

from pathlib import Path
from typing import TYPE_CHECKING

import core.config
from core.errors import UserError

if TYPE_CHECKING:
    from launch.service.tokens import Tokens


class OfRoot(core.config.Config):
    """A service by its files; it may run meanwhile."""

    root: Path = Path("service")
    """Folder that `diffdoctor serve` was given."""
    db: str | None = None
    """Address of the database, if `serve` was given one."""

    def tokens(self) -> "Tokens":
        try:
            from launch.service.database import Database
            from launch.service.service import default_db, prepared
            from launch.service.tokens import Tokens
        except ImportError as error:
            raise UserError(
                f"{error.name} is missing: pip install 'diffdoctor[service]'."
            ) from error
        prepared(self.root)
        return Tokens(Database.open(self.db or default_db(self.root)))
