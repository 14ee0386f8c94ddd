"""Shapes are checked in every test: jaxtyping reads the annotations of our packages at import.

The hook must stand before the first import of a product module, so it is installed here and
nowhere else; in production the annotations cost nothing.
"""

import os
from pathlib import Path

from jaxtyping import install_import_hook

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = (
    "core",
    "base_models",
    "detector",
    "data_balancing",
    "treat",
    "miniature",
    "launch",
    "diffdoctor",
)

# No test may reach for a model hub: what is not in the repository does not exist.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Children that tests start see the same folders as the tests themselves.
os.environ["PYTHONPATH"] = os.pathsep.join(
    filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")])
)

# As an expression, because pytest's import mode keeps `tests` from holding its modules as names.
install_import_hook(PACKAGES, "importlib.import_module('tests.shapes').check")
