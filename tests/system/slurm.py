"""A SLURM of one machine, of Debian's packages, with all its files in a folder of its own."""

import getpass
import os
import secrets
import shutil
import socket
import subprocess
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

CONF = """ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ctld}
SlurmdPort={d}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
SlurmUser={user}
SlurmdUser={user}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=batch_sched_delay=0,sched_interval=1
SlurmdParameters=config_overrides
ReturnToService=2
MpiDefault=none
MailProg=/bin/true
AccountingStorageType=accounting_storage/none
NodeName={host} NodeAddr=127.0.0.1 CPUs=8 State=UNKNOWN
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


class Cluster:
    """Its daemons; `controller` may be stopped and started again."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.running: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, *words: str) -> None:
        program = shutil.which(words[0]) or shutil.which(words[0], path="/usr/sbin")
        assert program, "run `make test-system`, which installs SLURM"
        log = (self.folder / f"{words[0]}.out").open("ab")
        self.running[words[0]] = subprocess.Popen(
            [program, *words[1:]], stdin=subprocess.DEVNULL, stdout=log, stderr=log
        )

    def controller(self) -> None:
        self.start("slurmctld", "-D")

    def stop(self, name: str) -> None:
        process = self.running.pop(name)
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@contextmanager
def slurm():
    """A cluster that takes jobs, known to all commands by SLURM_CONF."""
    folder = Path(tempfile.mkdtemp(prefix="diffdoctor-slurm-"))
    folder.chmod(0o755)
    for name in ("state", "spool"):
        (folder / name).mkdir()
    key = folder / "munge.key"
    key.write_bytes(secrets.token_bytes(128))
    key.chmod(0o600)
    conf = folder / "slurm.conf"
    with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("", 0)) as other:
        ports = {"ctld": one.getsockname()[1], "d": other.getsockname()[1]}
    names = {"host": socket.gethostname().partition(".")[0], "user": getpass.getuser()}
    conf.write_text(CONF.format(**names, **ports, folder=folder))
    os.environ["SLURM_CONF"] = str(conf)
    cluster = Cluster(folder)
    places = [f"--{name}-file={folder}/munge.{name}" for name in ("key", "pid", "log", "seed")]
    try:
        cluster.start("munged", "--foreground", "--force", f"--socket={folder}/munge.socket",
                      *places)  # fmt: skip
        until((folder / "munge.socket").exists, folder)
        cluster.controller()
        cluster.start("slurmd", "-D")
        until(lambda: "idle" in told("sinfo", "--noheader", "--format=%t"), folder)
        yield cluster
    finally:
        told("scancel", f"--user={getpass.getuser()}")
        until(lambda: not told("squeue", "--noheader"), folder)
        for name in [*cluster.running][::-1]:
            cluster.stop(name)
        del os.environ["SLURM_CONF"]
        shutil.rmtree(folder)


def told(*words: str) -> str:
    return subprocess.run(words, capture_output=True, text=True).stdout


def until(what, folder: Path, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not what():
        logs = "".join(path.read_text() for path in folder.glob("*.out"))
        assert time.monotonic() < end, logs[-3000:]
        time.sleep(0.1)
