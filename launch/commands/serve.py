"""`diffdoctor serve`: a root folder in; jobs over HTTP, until it is asked to stop, out."""

import importlib.util
import ipaddress
import shlex
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

import core.config
from core.errors import UserError

GB = 1 << 30
LIBRARIES = {"slurm": "submitit", "ray": "ray"}
"""What a launcher is driven by, which comes with the extra of its own name."""
LAYOUTS = "MULTI_GPU", "FSDP"
"""Of processes that `accelerate launch` starts itself, also where they compute on the CPU."""
LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})


class Config(core.config.Config):
    """Serve jobs over HTTP: train a detector, treat a model, export, as OpenAI's clients ask.

    Bound to this machine alone it needs no token until one is made (`diffdoctor token create`);
    bound to anything else it does not start without. Stopping it leaves running jobs running;
    starting it again takes them up.
    """

    root: Path = Path("service")
    """Folder of all jobs, files and (by default) the database."""
    db: str | None = None
    """Address of the database, such as postgresql+psycopg://user@host/name; SQLite in the root by
    default. Instead of a password in it, set PGPASSWORD."""
    host: str = "127.0.0.1"
    """Address to listen on."""
    port: int = Field(8765, ge=0, le=65535)
    """0: any that is free; it is printed."""
    launcher: Literal["local", "slurm", "ray"] = "local"
    """Where trainers run: as processes of this machine, or as jobs of a SLURM or Ray cluster."""
    slurm: tuple[str, ...] = ()
    """NAME=VALUE each, for a job of SLURM: partition=gpu gpus_per_node=1 time=1440 (minutes)."""
    ray: tuple[str, ...] = ()
    """NAME=VALUE each: address=http://head:8265 (of Ray's dashboard; by default this machine's),
    and for a job num_gpus=1 num_cpus=8 memory_gb=64."""
    slots: int | None = Field(None, ge=1, le=1024)
    """How many jobs run at once (default: one for each of `devices`, or one)."""
    devices: tuple[str, ...] = ()
    """GPUs that are shared out, one to a job, as CUDA_VISIBLE_DEVICES names them. By default every
    job sees all."""
    accelerate: Path | None = None
    """A layout of accelerate's (accelerate_configs/many_gpus.yaml): each training runs as the
    processes that it names, one for each GPU of a job."""
    models: tuple[str, ...] = ()
    """NAME=FOLDER each: models and data that jobs may name."""
    hub: bool = False
    """Let jobs name models of the Hugging Face Hub, which are then fetched."""
    log: Literal["text", "json"] = "text"
    """How the log is written, to stderr; as JSON with a line for every request."""
    max_upload_gb: float = Field(4.0, gt=0)
    """Of one file."""
    quota_gb: float = Field(64.0, gt=0)
    """Of all files of an owner, with what archives among them unpack to."""
    keep_days: float | None = Field(None, gt=0)
    """Days for which the run folder of a job that has ended is kept, with what it made; by default
    for ever."""

    @model_validator(mode="after")
    def _agree(self) -> "Config":
        named(self.models)
        layout(self.accelerate)
        for said in (self.slurm, self.ray):
            options(said)
        if self.launcher == "slurm" and self.devices:
            raise ValueError("SLURM gives out GPUs itself: --slurm gpus_per_node=1, not devices")
        if self.launcher == "ray" and self.devices:
            raise ValueError("Ray gives out GPUs itself: --ray num_gpus=1, not devices")
        if self.devices and self.slots and self.slots > len(self.devices):
            raise ValueError(f"{self.slots} slots need as many devices, not {len(self.devices)}")
        return self


def options(words: tuple[str, ...]) -> dict[str, str]:
    """Names and values; raises `ValueError` for what is none."""
    found: dict[str, str] = {}
    for one in words:
        name, _, found[name] = one.partition("=")
    if not all(name.isidentifier() and said.isprintable() for name, said in found.items()):
        raise ValueError("an option of SLURM or Ray is NAME=VALUE")
    return found


def layout(file: Path | None) -> dict[str, Any]:
    """What the file says; raises `ValueError` where it is not of several processes here."""
    if file is None:
        return {}
    said = core.config.read_yaml(file)
    if said.get("distributed_type") not in LAYOUTS or said.get("num_machines", 1) != 1:
        kinds = " or ".join(LAYOUTS)
        raise ValueError(f"{file} is no layout of {kinds} on one machine: choose another")
    if not isinstance(said.get("num_processes"), int) or said["num_processes"] < 2:
        raise ValueError(f"num_processes of {file} is to be the number of a job's GPUs, 2 or more")
    return said


def named(models: tuple[str, ...]) -> dict[str, Path]:
    """Names and folders; raises `ValueError` for what is none."""
    found = {}
    for one in models:
        name, _, folder = one.partition("=")
        path = Path(folder).expanduser()
        if not name or not folder or "/" in name or name.startswith(("file-", "ftjob-", "ft:")):
            raise ValueError(f"{one!r} is no NAME=FOLDER")
        if name in found:
            raise ValueError(f"the model {name!r} is given twice")
        if not path.exists():
            raise ValueError(f"there is no {path} (of the model {name!r})")
        found[name] = path.resolve()
    return found


def main(config: Config) -> None:
    """Check everything, then listen, then begin."""
    try:
        from launch.service.app import make_app
        from launch.service.database import without_password
        from launch.service.service import Limits, Plan, Service, default_db
        from launch.service.serving import bound, serve
    except ImportError as error:
        raise UserError(
            f"{error.name} is missing: in the checkout, pip install -e '.[service]'."
        ) from error
    library = LIBRARIES.get(config.launcher)
    if library is not None and importlib.util.find_spec(library) is None:
        raise UserError(
            f"{library} is missing: in the checkout, pip install -e '.[{config.launcher}]', or "
            "choose another --launcher."
        )
    listening = bound(config.host, config.port)
    port = listening.getsockname()[1]
    limits = Limits(int(config.max_upload_gb * GB), int(config.quota_gb * GB))
    plan = Plan(
        root=config.root,
        db=config.db or default_db(config.root),
        launcher=config.launcher,
        slots=config.slots or len(config.devices) or 1,
        devices=config.devices,
        models=named(config.models),
        hub=config.hub,
        slurm=options(config.slurm),
        ray=options(config.ray),
        layout=layout(config.accelerate),
        keep_days=config.keep_days,
        limits=limits,
    )
    service = Service(plan)
    open_to = LOOPBACK | {config.host.lower()} if is_loopback(config.host) else None
    if open_to is None and not service.tokens.any():
        words = [
            "--root",
            str(config.root),
            *(["--db", without_password(config.db)] if config.db else []),
        ]
        raise UserError(
            f"{config.host} is not this machine alone, and there is no token: make one with "
            f"`diffdoctor token create {shlex.join(words)} --owner NAME` first."
        )
    shown = f"[{config.host}]" if ":" in config.host else config.host
    print(f"serving on http://{shown}:{port} (docs: /docs)", flush=True)
    serve(make_app(service, open_to), service, listening, config.log)


def is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


if __name__ == "__main__":
    core.config.run_program(main, Config, prog="diffdoctor serve")
