"""Trainers as jobs of a SLURM cluster whose machines see the service's root folder.

submitit writes the batch script and hands it to `sbatch`. Its public call would pickle a function;
the script here only starts `launch.trainer`, which reads the `job.json` of its folder. Nothing of
a job gets into the script but its id and the number of the attempt.
"""

import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from core.errors import UserError
from launch.folder import LOG, is_held
from launch.launchers.contract import Liveness, Unreachable, environment, job_name

ALIVE = frozenset(
    "PENDING CONFIGURING RUNNING COMPLETING SUSPENDED STOPPED SIGNALING STAGE_OUT RESIZING "
    "REQUEUED REQUEUE_FED REQUEUE_HOLD RESV_DEL_HOLD SPECIAL_EXIT".split()
)
DEAD = frozenset(
    "BOOT_FAIL CANCELLED COMPLETED DEADLINE FAILED NODE_FAIL OUT_OF_MEMORY PREEMPTED REVOKED "
    "TIMEOUT".split()
)
EVERY = 5.0
"""Seconds for which word that a trainer lives is believed: a controller is not to be asked often.
How a trainer ended stands in its folder, and is seen at once."""
PATIENCE = 20
"""Seconds that a command of SLURM may take."""
ENDING = 30.0
"""Seconds within which what was killed is gone."""
DEFAULTS = {"time": 24 * 60, "wckey": "diffdoctor"}
"""Minutes; a job that has not ended by then saves, and waits in the queue again."""
OWN = frozenset(
    {"additional_parameters", "array_parallelism", "dependency", "job_name", "nodes", "setup"}
    | {"signal_delay_s", "srun_args", "stderr_to_stdout", "teardown", "use_srun"}
)
"""Options of submitit's that are ours to set, or no words."""
NOTICE = 120
"""Seconds before its time is up at which SLURM asks a trainer to save and stop."""
FORGOTTEN = "Invalid job id"
"""What `squeue` says of a job that ended some minutes ago."""
AWAY = "Unable to contact slurm controller"
"""What `sbatch` says where nobody can tell whether the job was taken."""


class Slurm:
    """The handle is SLURM's number of the job."""

    def __init__(self, options: Mapping[str, str] | None = None) -> None:
        """`options` in SLURM's words: partition, gpus_per_node, time (in minutes) ..."""
        if OWN & set(options or {}):
            raise UserError(
                f"{min(OWN & set(options or {}))!r} is no option to choose: leave it out."
            )
        self.options = {name: _value(said) for name, said in (options or {}).items()}
        self._seen: dict[str, float] = {}

    def submit(self, folder: Path, attempt: int) -> str:
        name = job_name(folder, attempt)
        if set(str(folder)) & set("%\\") or not str(folder).isprintable():
            raise UserError(f"SLURM cannot write to {str(folder)!r}: choose a plainer --root.")
        try:
            import submitit
        except ImportError as error:
            raise UserError("submitit is missing: pip install 'diffdoctor[slurm]'.") from error
        words = [sys.executable, "-P", "-m", "launch.trainer", str(folder), str(attempt)]
        seen = [name for name in environment() if re.fullmatch(r"[A-Za-z_]\w*", name)]
        log = str(folder / LOG)
        fixed = {
            "chdir": str(folder),
            "output": log,
            "error": log,
            "export": ",".join(seen) or "NIL",
            "signal": f"B:USR1@{NOTICE}",
            "no-requeue": True,  # an attempt is run once; the service starts the next
        }
        scripts = _scripts(folder, attempt)
        scripts.mkdir(parents=True, exist_ok=True)
        try:
            executor = submitit.SlurmExecutor(folder=scripts)
            executor.update_parameters(
                **{**DEFAULTS, **self.options},
                job_name=name,
                use_srun=False,
                additional_parameters=fixed,
            )
            # Not `submit`, which pickles what is to run.
            return executor._submit_command(f"exec {shlex.join(words)}").job_id
        except (ValueError, TypeError, RuntimeError, OSError, _failure(submitit)) as error:
            lines = str(error).strip().splitlines() or ["no reason given"]
            said = lines[0 if isinstance(error, ValueError) else -1].strip()
            if AWAY in str(error):
                raise Unreachable(said) from error
            raise UserError(f"SLURM took no job ({said}).") from error

    def poll(self, folder: Path, attempt: int, handle: str) -> Liveness:
        if not handle.isascii() or not handle.isdigit():
            return Liveness.UNKNOWN
        if time.monotonic() - self._seen.get(handle, -EVERY) < EVERY:
            return Liveness.ALIVE
        try:
            state = _state(handle)
            held = state in DEAD and is_held(folder, attempt)  # a controller that lost its jobs
        except (Unreachable, OSError):
            return Liveness.UNKNOWN
        if state in ALIVE or held:
            self._seen[handle] = time.monotonic()
            return Liveness.ALIVE
        self._seen.pop(handle, None)
        return Liveness.DEAD if state in DEAD else Liveness.UNKNOWN

    def cancel(self, folder: Path, attempt: int, handle: str) -> None:
        if not handle.isascii() or not handle.isdigit():
            return
        self._seen.pop(handle, None)
        until = time.monotonic() + ENDING
        while time.monotonic() < until:
            try:
                if _state(handle) in DEAD:
                    return
                _ask("scancel", "--quiet", "--full", "--signal=KILL", handle)
                _ask("scancel", "--quiet", handle)  # one that still waits hears no signal
            except Unreachable:
                pass
            time.sleep(0.2)

    def recover(self, folder: Path, attempt: int) -> str | None:
        """Raises `Unreachable`, rather than say that there is none, where SLURM does not answer."""
        named = f"--name={job_name(folder, attempt)}"
        found = _ask("squeue", "--noheader", "--states=all", "--format=%A", named).split()
        left = [path.name.partition("_")[0] for path in _scripts(folder, attempt).glob("*_*.sh")]
        numbers = [int(one) for one in found + left if one.isdigit()]
        return str(max(numbers)) if numbers else None


def _scripts(folder: Path, attempt: int) -> Path:
    return folder / ".slurm" / str(attempt)


def _value(said: str) -> str | int:
    if not said.isprintable():
        raise UserError(f"{said!r} cannot stand in a line of SLURM's.")
    return int(said) if said.isascii() and said.isdigit() else said


def _failure(submitit: object) -> type[Exception]:
    return submitit.core.utils.FailedJobError  # pyright: ignore


def _state(number: str) -> str:
    try:
        found = _ask("squeue", "--noheader", "--states=all", "--format=%T", f"--jobs={number}")
    except Unreachable as error:
        if FORGOTTEN in str(error):
            return "COMPLETED"
        raise
    return found.strip() or "COMPLETED"


def _ask(*words: str) -> str:
    """What a command of SLURM prints."""
    try:
        done = subprocess.run(
            words,
            env={**os.environ, "LC_ALL": "C", "SLURM_TIME_FORMAT": "standard"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=PATIENCE,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Unreachable(str(error)) from error
    if done.returncode:
        raise Unreachable(done.stderr.strip())
    return done.stdout
