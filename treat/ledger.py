"""What a treatment keeps besides weights: figures, pictures, the best step, checkpoints, refreshes.

Main process: looks, draws, writes. The others are told what they need to go the same way.
"""

import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from accelerate.utils import broadcast, broadcast_object_list
from torch import nn

from core import checkpoint
from core.errors import UserError
from core.images import write_image
from core.memory import in_use
from core.processes import this_process
from core.run import PAUSED, Run
from core.wishes import MET
from treat.best import Best
from treat.guard import FEWEST, PACE, PREFIX, Guard, Pace
from treat.lora import load_lora_state, lora_state
from treat.refresh import Refresher
from treat.update import Update
from treat.watch import Watcher

NEVER_SOUND = (
    "{folder} has no step worth keeping: no look at the watched images was sound. Treat anew with "
    "another --out and a lower --learning-rate or --pixel-weight, or look sooner (--watch-every); "
    "--guard warn goes on all the same, and --step last exports what became of it."
)
FEW_WATCHED = (
    "the guard sees nothing but the adapters' pace: it needs {} watched images, and there are {}. "
    "In another --out raise --watch-images and, where prompts are few, name more by --watch-prompts"
)
NOTHING_CHOSE = (
    "its last step is exported, for nothing chose one: that takes a --second-detector, a look "
    "(--watch-every), and a loss on real images within --offline-rise"
)


class Ledger:
    """The state of a run between updates; `step` is the number of updates made."""

    def __init__(
        self,
        run: Run,
        network: nn.Module,
        update: Update,
        watcher: Watcher,
        refresher: Refresher | None,
        *,
        best: Best,
        guard: Guard | None,
        steps: int,
        stop_at_collapse: bool,
        checkpoint_every: int,
        picture_every: int,
        watch_every: int,
        patience: int,
        together: bool = False,
    ):
        self.run, self.network, self.update = run, network, update
        self.watcher, self.refresher, self.best, self.guard = watcher, refresher, best, guard
        self.steps, self.stop_at_collapse = steps, stop_at_collapse
        self.every = {
            "checkpoint": checkpoint_every,
            "picture": picture_every,
            "watch": watch_every,
        }
        self.patience = patience
        self.place = this_process()
        self.together = together and self.place.num_processes > 1
        self.draws = self.place.is_main_process or together
        """Whether this process takes part in drawings: a network that is shared out needs all."""
        self.step = 0
        self.saved: int | None = None
        self.sound: int | None = None
        """The last step whose look showed nothing amiss."""
        self.collapsed = False
        self.blind = False
        """The guard has said that it sees nothing."""
        self.last: dict[str, float] = {}

    def begin(self) -> None:
        """Take up the newest checkpoint, or look at the base before the first update."""
        with self.place.main_process_first():
            found = checkpoint.load_newest(self.run.checkpoints, self._warn)
        images = len(self.watcher.sampler.texts.held)
        if self.guard and self.every["watch"] and images < FEWEST:
            self._warn(FEW_WATCHED.format(FEWEST, images))
            self.blind = True
        if found is None:
            watched = self._watched(0)
            self._look(watched)
            self._report_detector(watched)
            if self.every["picture"]:
                self._picture()
            return
        load_lora_state(self.network, found.tensors["adapter"])
        self.update.restore(found.tensors["optimizer"], found.state["update"])
        self.best.restore(found.state["best"])
        # Absent where the run began before there was a guard.
        self.sound = found.state.get("sound")
        self.collapsed = self.stop_at_collapse and found.state.get("collapsed", False)
        if self.guard:
            self.guard.before = found.state.get("amiss", ())
            self.guard.pace = Pace(**found.state.get("pace", {}))
        if self.refresher:
            self.refresher.restore(found.tensors.get("detector", {}), found.state["refreshes"])
        checkpoint.unpack_rng(found.tensors["rng"])
        self.step = self.saved = found.step
        self.run.event("info", f"resumed after step {self.step}")

    def refresh(self) -> bool:
        """Refresh the detector where that is due; False if a signal came before the labels."""
        if self.refresher is None or not self.refresher.due(self.step):
            return True
        done = [True]
        if self.place.is_main_process:
            self.run.event("info", f"refreshing the detector after step {self.step}")
            sampler = self.watcher.sampler
            done = [self.refresher.refresh(self.step, sampler, lambda: self.run.interrupted)]
        elif self.draws:
            self.refresher.drawn(self.step, self.watcher.sampler)
        if self.place.num_processes > 1:
            broadcast_object_list(done)
            for tensor in self.refresher.detector.state_dict().values():
                broadcast(tensor, from_process=0)
        if done[0]:
            self.refresher.note(self.step)
            self.watcher.base_seen = None
        return done[0]

    def record(self, step: int, figures: Mapping[str, float], seconds: float) -> None:
        """Log an update, with a look, a picture and a checkpoint where due or asked for."""
        self.step = step
        if figures["skipped"]:
            self.run.event("warn", f"step {step} was not finite and changed nothing", step=step)
        watched = self._watched(step)
        self.last = {**figures, **watched}
        held = in_use(self.update.total.device)
        self.run.log(step, **figures, **watched, seconds=seconds, **held)
        better, asked = self._look(watched), self._asked()
        if "sample" in asked:
            self._sample(watched)
        elif self._due("picture"):
            self._picture()
        if better or "save" in asked or self._due("checkpoint"):
            self.save()
        for wish in sorted(asked):
            self.run.event("info", f"{MET[wish]} after step {step}, as asked", step=step)

    def remaining(self) -> range:
        """The updates still to be made."""
        return range(self.step + 1, self.step + 1 if self.exhausted else self.steps + 1)

    @property
    def exhausted(self) -> bool:
        """The lowest second score is `patience` looks old, or the images have collapsed."""
        return self.collapsed or (bool(self.patience) and self.best.since >= self.patience)

    @property
    def kept(self) -> int | None:
        """The step to go back to: the second detector's choice, else the last sound one."""
        return self.sound if self.best.step is None else self.best.step

    @property
    def export(self) -> int | None:
        """The step that the run stands for once it has ended; None where no look was sound."""
        amiss = self.collapsed or bool(self.guard and self.guard.before)
        return self.kept if amiss or self.best.step is not None else self.step

    def save(self) -> None:
        if not self.place.is_main_process or self.saved == self.step:
            return
        optimizer, state = self.update.state()
        tensors = {"adapter": lora_state(self.network), "optimizer": optimizer}
        tensors["rng"] = checkpoint.pack_rng()
        if self.refresher and self.refresher.done:
            tensors["detector"] = self.refresher.state()
        checkpoint.save(
            self.run.checkpoints,
            self.step,
            tensors,
            {
                "update": state,
                "best": self.best.state(),
                "amiss": list(self.guard.before) if self.guard else [],
                "pace": asdict(self.guard.pace) if self.guard else {},
                "sound": self.sound,
                "collapsed": self.collapsed,
                "refreshes": self.refresher.done if self.refresher else [],
            },
            best=self.kept,
        )
        self.saved = self.step

    def keep(self) -> int | None:
        """Save the last update (again) before an error ends the run; its step, where this process
        saved it. Without any there is no adapter, and the inputs are not bound yet."""
        if not self.step or not self.place.is_main_process:
            return None
        self.saved = None
        self.save()
        return self.step

    def close(self) -> int:
        """Save, say how it ended; the program's exit code.

        Raises `UserError` where the guard may stop the run and no look was sound.
        """
        self.save()
        finished = self.step >= self.steps or self.exhausted
        if not finished:
            self.run.event(
                "info", f"stopped after step {self.step} of {self.steps}: the same command resumes"
            )
            return PAUSED
        best = self.export
        said = {"steps": self.step, "best_step": best, "second_mean": self.best.known}
        self.run.summary({**self.last, **said})
        ended = f"finished after step {self.step}"
        if best is not None:
            chosen = self.best.step is not None or best != self.step
            told = f"the best is step {best}" if chosen else NOTHING_CHOSE
            self.run.event("info", f"{ended}; {told}")
            return 0
        self.run.event("warn", f"{ended}; no look was sound, and no step is the best")
        if self.stop_at_collapse:
            raise UserError(NEVER_SOUND.format(folder=self.run.folder))
        return 0

    def _warn(self, message: str) -> None:
        self.run.event("warn", message)

    def _due(self, what: str) -> bool:
        return bool(self.every[what]) and self.step % self.every[what] == 0

    def _asked(self) -> frozenset[str]:
        """A person's wishes, the same on every process that draws."""
        said = [self.run.wishes()]
        if self.together:
            broadcast_object_list(said)
        return said[0]

    @property
    def _kept(self) -> Path | None:
        return self.run.folder / "watched" if self.place.is_main_process else None

    def _watched(self, step: int) -> dict[str, float]:
        """The same figures on every process."""
        if not self._due("watch"):
            return {}
        figures = self.watcher.figures(self._kept, step) if self.draws else {}
        said: list[Any] = [figures, self.watcher.second]
        if self.place.num_processes > 1:
            broadcast_object_list(said)
        figures, self.watcher.second = said
        if step == 0:
            self.run.log(0, **figures)
        if self.guard:
            pace = self.guard.pace.change(figures["weights_moved"], self.update.spent)
            figures |= {} if pace is None else {PREFIX + PACE: pace}
        return figures

    def _look(self, watched: Mapping[str, float]) -> bool:
        """True if the step is worth going back to."""
        if not watched:
            return False
        if self.guard is None:
            return self.best.look(self.step, watched, each=self.watcher.second)
        seen = [name for name in watched if name.startswith(PREFIX) and name != PREFIX + PACE]
        if self.step and not self.blind and not seen:
            self.blind = True
            told = "the guard sees nothing but the adapters' pace: step 0's images are not in "
            told += str(self.run.folder / "watched")
            self.run.event("warn", told, step=self.step)
        alarms = self.guard.look(watched)
        if alarms:
            moved = ", ".join(f"{name} {watched[PREFIX + name]:+.1f}" for name in alarms)
            told = f"the images collapse after step {self.step} (in each meter's scale: {moved})"
            told += "; --guard warn goes on all the same" if self.stop_at_collapse else ""
            self.run.event("warn", told, step=self.step)
            self.collapsed = self.stop_at_collapse
        sound = not self.guard.before and self.step > 0
        if sound:
            self.sound = self.step
        better = self.best.look(self.step, watched, sound, self.watcher.second)
        return better or (sound and self.best.step is None)

    def _report_detector(self, watched: Mapping[str, float]) -> None:
        """Whether the detector tells the base's images from real ones, before it teaches."""
        drawn = watched.get("reward_frequency")
        if drawn is None or not self.place.is_main_process:
            return
        real = self.watcher.real_frequency()
        if real is None:
            return
        told = f"the detector flags {drawn:.0%} of the base's images, {real:.0%} of real ones"
        blind = real >= drawn
        told += ": it cannot tell them apart, and what it teaches is no mend" if blind else ""
        self.run.event("warn" if blind else "info", told, drawn=drawn, real=real)

    def _sample(self, watched: Mapping[str, float]) -> None:
        """What this run draws at all, before it is due; the pictures, where it draws nothing.

        No figure comes of it: the best step and the guard are what they would be without.
        """
        if self.every["watch"] and not watched and self.draws:
            self.watcher.draw(self._kept, self.step)
        if self.every["picture"] or not self.every["watch"]:
            self._picture()

    def _picture(self) -> None:
        if not self.draws:
            return
        begun, picture = time.perf_counter(), self.watcher.picture()
        if self.place.is_main_process:
            path = self.run.pictures / f"step-{self.step:08d}.png"
            write_image(path, picture)
            spent = round(time.perf_counter() - begun, 1)
            self.run.event("info", f"wrote {path.name} in {spent} s")
