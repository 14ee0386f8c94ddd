"""How annotations are checked in the tests: as pyright reads them, where an int is also a float.

Of a sequence, its first item: one at random reads another sample of a store in every run.
"""

from beartype import BeartypeConf, beartype

check = beartype(conf=BeartypeConf(is_pep484_tower=True, is_random=False))
