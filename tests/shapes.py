"""How annotations are checked in the tests: as pyright reads them, where an int is also a float."""

from beartype import BeartypeConf, beartype

check = beartype(conf=BeartypeConf(is_pep484_tower=True))
