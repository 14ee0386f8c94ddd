"""In: a run folder with a `job.json`. Out: a trainer at work in it, and word of its life.

A launcher is one file with the four calls of `contract.Launcher` and one line in `LAUNCHERS`.
"""

from launch.launchers.contract import Launcher, Liveness
from launch.launchers.local import Local
from launch.launchers.ray import Ray
from launch.launchers.slurm import Slurm

__all__ = ["LAUNCHERS", "Launcher", "Liveness"]

LAUNCHERS: dict[str, type[Launcher]] = {"local": Local, "slurm": Slurm, "ray": Ray}
"""By the name that `diffdoctor serve --launcher` takes."""
