"""Trainers as jobs of a SLURM cluster whose machines see the service's root folder.

submitit words the batch script, which `sbatch` is handed. Its public call would pickle a function;
the script here only starts `launch.trainer`, which reads the `job.json` of its folder. Nothing of
a job gets into the script but its id and the number of the attempt.
"""

import os
import re
import shlex
import subprocess
import sys
import threading
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
LOST = re.compile(
    "Unable to contact|timed out|Zero Bytes were transmitted|Unexpected message received"
    "|(Communication|Message) (connection|send|receive|shutdown) failure"
)
"""What `sbatch` says where nobody can tell whether the job was taken (SLURM's `slurm_errno.c`)."""
ASKING = threading.BoundedSemaphore(8)
"""Questions to a controller at a time, so that one that is silent holds up half of the looks."""


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
            raise UserError(
                "submitit is missing: in the checkout, pip install -e '.[slurm]'."
            ) from error
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
            text = executor._make_submission_file_text(f"exec {shlex.join(words)}", name)
            script = scripts / "submission.sh"
            script.write_text(text)
            done = _run("sbatch", str(script))
        except subprocess.TimeoutExpired as error:
            raise Unreachable(str(error)) from error
        except (ValueError, TypeError, RuntimeError, OSError) as error:
            lines = str(error).strip().splitlines() or ["no reason given"]
            raise UserError(f"SLURM took no job ({lines[0].strip()}).") from error
        number = re.search(r"job (\d+)", done.stdout, re.ASCII)
        if done.returncode or number is None:
            said = (done.stderr.strip().splitlines() or ["no reason given"])[-1].strip()
            if LOST.search(done.stderr) or not done.returncode:
                raise Unreachable(said)
            raise UserError(f"SLURM took no job ({said}).")
        script.rename(scripts / f"{number[1]}_submission.sh")  # for `recover`
        return number[1]

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


def _state(number: str) -> str:
    try:
        found = _ask("squeue", "--noheader", "--states=all", "--format=%T", f"--jobs={number}")
    except Unreachable as error:
        if FORGOTTEN in str(error):
            return "COMPLETED"
        raise
    return found.strip() or "COMPLETED"


def _ask(*words: str) -> str:
    """What a command of SLURM prints, in plain English."""
    if not ASKING.acquire(blocking=False):
        raise Unreachable("SLURM has not answered earlier questions yet")
    try:
        done = _run(*words, LC_ALL="C", SLURM_TIME_FORMAT="standard")
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Unreachable(str(error)) from error
    finally:
        ASKING.release()
    if done.returncode:
        raise Unreachable(done.stderr.strip())
    return done.stdout


def _run(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        words,
        env={**os.environ, **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=PATIENCE,
    )
