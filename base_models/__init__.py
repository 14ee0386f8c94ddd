"""In: a base model's folder or Hub id. Out: a `DiffusionModel`, frozen, ready to be treated.

Each family is one file that wraps what diffusers ships; nothing outside this folder knows how the
families differ.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from core.contracts import DiffusionModel as DiffusionModel
else:
    # The protocol cannot be asked by isinstance, which the tests' shape checks would do.
    DiffusionModel = Any
