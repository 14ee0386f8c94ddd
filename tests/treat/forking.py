"""Names of settings files in, a line each; the real command of each in a fresh process.

Run as a program with the libraries loaded once: a child starts in no time, so that hundreds can be
killed. Answers with the child's number; after a further line, before which no other process can
take that number, with its exit code.
"""

import contextlib
import os
import signal
import sys
import traceback

import torch.utils.tensorboard  # noqa: F401 - what a run loads late, once for all children

import core.config
from tests.tiny import flux  # noqa: F401 - the same
from treat import train


def run(file: str) -> int:
    sys.argv = ["diffdoctor treat", "--config", file]
    with open(f"{file}.said", "a") as said, contextlib.redirect_stderr(said):
        try:
            core.config.run_program(train.main, train.Config, prog="diffdoctor treat")
        except SystemExit as end:
            return int(end.code or 0)
    return 0


if __name__ == "__main__":
    print("ready", flush=True)
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            code = 1
            try:
                code = run(line.strip())
            except KeyboardInterrupt:  # before the command could hear of it
                code = 128 + signal.SIGINT
            except BaseException:
                with open(f"{line.strip()}.said", "a") as said:
                    traceback.print_exc(file=said)
            finally:
                os._exit(code)
        print(child, flush=True)
        sys.stdin.readline()
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)
