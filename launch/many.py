"""A layout of processes and a program in; its run by `accelerate launch`, and its exit code, out.

    python -m launch.many LAYOUT.yaml MODULE WORDS...

For a trainer it is a program like any other: a signal that asks to save and stop reaches every
process, the exit code is the program's own (`accelerate launch` alone would say 1 for all), and
what it started dies with it.
"""

import os
import signal
import sys
from pathlib import Path
from types import FrameType

from launch.rank import LAUNCHER, PAUSED_FILE
from launch.trainer import PAUSED

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


def main(words: list[str]) -> int:
    layout, module, *rest = words
    Path(PAUSED_FILE).unlink(missing_ok=True)
    os.environ |= {LAUNCHER: str(os.getpid()), "PYTHONSAFEPATH": "1"}
    for number in SIGNALS:
        signal.signal(number, pass_on)
    from accelerate.commands.launch import launch_command, launch_command_parser
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    own = ["--config_file", layout, "--main_process_port", "0"]  # any that is free
    arguments = launch_command_parser().parse_args([*own, "-m", "launch.rank", module, *rest])
    arguments.signals_to_handle = "SIGHUP"  # torch would give its processes 30 seconds to save
    try:
        launch_command(arguments)
    except ChildFailedError as error:
        code = error.get_first_failure()[1].exitcode
        return code if code > 0 else 128 - code
    finally:  # Python's own end would take the handlers away, and a reminder would kill us
        for number in SIGNALS:
            signal.signal(number, signal.SIG_IGN)
    return PAUSED if Path(PAUSED_FILE).exists() else 0


def pass_on(number: int, frame: FrameType | None) -> None:
    """torch starts each process in a session of its own, which no signal to our group reaches."""
    begun = children()
    if not begun:  # nobody else would hear it, and there is nothing to save yet
        os._exit(128 + number)
    for pid in begun:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            pass


def children() -> list[int]:
    found = Path("/proc/self/task").glob("*/children")
    return [int(pid) for path in found for pid in path.read_text().split()]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
