"""One process of several, started by `launch.many`: a program's module and words in, its run out.

    python -m launch.rank MODULE WORDS...

That it saved and paused is said by a file in the present folder: torch takes every exit code but 0
for a failure, and would end the other processes while they save.
"""

import os
import runpy
import sys
from pathlib import Path

from launch.trainer import PAUSED, die_with

LAUNCHER = "DIFFDOCTOR_LAUNCHER"
"""Names the process that starts this one, with which it dies."""
PAUSED_FILE = ".paused"


def main(words: list[str]) -> int:
    die_with(int(os.environ[LAUNCHER]))
    module, sys.argv = words[0], words
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit as ended:
        if ended.code != PAUSED:
            raise
        Path(PAUSED_FILE).touch()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
