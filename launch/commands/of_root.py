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

    def tokens(self, new: bool = False) -> "Tokens":
        """Raises `UserError` where no service was ever started there, unless it may be `new`."""
        try:
            from launch.service.database import Database
            from launch.service.service import default_db, identity, identity_path, prepared
            from launch.service.tokens import Tokens
        except ImportError as error:
            raise UserError(
                f"{error.name} is missing: in the checkout, pip install -e '.[service]'."
            ) from error
        root = self.root.expanduser().resolve()
        if not new and not identity_path(root).is_file():
            raise UserError(
                f"{self.root} is no service's folder: check --root; before the first start of one "
                "say `diffdoctor token create --new`."
            )
        if not new and self.db is None and not (root / "jobs.sqlite").is_file():
            raise UserError(f"the service in {self.root} has another database: say its --db.")
        name = identity(prepared(root))
        database = Database.open(self.db or default_db(root))
        database.belongs(name)
        return Tokens(database)
