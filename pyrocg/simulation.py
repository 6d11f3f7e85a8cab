"""A replica-exchange simulation in progress: its loop, its records and its checkpoints."""

from __future__ import annotations

import itertools
import math
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor
from tqdm.auto import tqdm

from pyrocg.checkpoint import load_state, save_state
from pyrocg.langevin import Baoab, Replicas, exchange

__all__ = ["Simulation", "broadcast_masses", "check_settings", "check_start"]


@dataclass
class Counters:
    """The plain numbers that a checkpoint holds."""

    step: int = 0
    seconds: float = 0.0
    energy_calls: int = 0


class Simulation:
    """Replicas on ladders of temperatures, advanced and exchanged; started by :meth:`start`.

    Args:
        dynamics: of one time step.
        settings: plain values by name, of :func:`~pyrocg.reference.replica_exchange`; a checkpoint
            is refused if they are others.
        checkpoint: file to write to, and to resume from if it exists.
        checkpoint_seconds: shortest time between two writes.
        progress: show a progress bar.

    Attributes:
        records: positions ``x``, ``energy`` and ``bias`` of the first rung, a list of tensors
            ``(n_ladders, ...)`` each.
        accepted: accepted and attempted exchanges of each pair, shape ``(2, n_rungs - 1)``.
        round_trips: of each ladder, shape ``(n_ladders,)``.
        counters: steps, seconds and energy calls, over all resumed runs.
    """

    def __init__(
        self,
        dynamics: Baoab,
        settings: dict[str, Any],
        checkpoint: Path | None,
        checkpoint_seconds: float,
        progress: bool,
    ) -> None:
        self.dynamics = dynamics
        self.settings = settings
        self.checkpoint = checkpoint
        self.checkpoint_seconds = checkpoint_seconds
        self.progress = progress
        self.counters = Counters()
        self.generator = torch.Generator(dynamics.kt.device).manual_seed(settings["seed"])
        self.records: dict[str, list[Tensor]] = {"x": [], "energy": [], "bias": []}

    def start(self, start: Tensor) -> None:
        """Set up the first state, from positions ``(n_starts, *event_shape)``, or resume."""
        n_ladders, n_rungs = self.settings["n_ladders"], len(self.settings["ladder"])
        index = torch.arange(n_ladders, device=start.device) % len(start)
        x = start[index].unsqueeze(1).repeat(1, n_rungs, *(1 for _ in start.shape[1:]))
        if self.checkpoint is not None and self.checkpoint.exists():
            self._restore(load_state(self.checkpoint), x.device)
            return
        self.replicas = self.dynamics.start(x, self.generator)
        self.counters.energy_calls = n_ladders * n_rungs
        # per replica, which end of the ladder it was at last: 1 the first rung, 2 the last
        self.ends = torch.zeros(n_ladders, n_rungs, dtype=torch.long, device=x.device)
        self.accepted = torch.zeros(2, n_rungs - 1, dtype=torch.long, device=x.device)
        self.round_trips = torch.zeros(n_ladders, dtype=torch.long, device=x.device)

    def finish(self) -> None:
        """Take the steps that are left."""
        c, n_steps = self.counters, self.settings["n_steps"]
        started, saved = time.monotonic() - c.seconds, time.monotonic()
        with tqdm(total=n_steps, initial=c.step, disable=not self.progress, unit="step") as bar:
            while c.step < n_steps:
                self._step()
                bar.update()
                c.seconds = time.monotonic() - started
                if time.monotonic() - saved > self.checkpoint_seconds:
                    self._save()
                    saved = time.monotonic()
        self._save()

    def _step(self) -> None:
        c, s = self.counters, self.settings
        self.replicas = self.dynamics.step(self.replicas, self.generator)
        c.step += 1
        c.energy_calls += self.replicas.energy.numel()
        exchanging = c.step % s["exchange_every"] == 0
        recording = c.step % s["record_every"] == 0 or c.step == s["n_steps"]
        if (exchanging or recording) and not bool(torch.isfinite(self.replicas.energy).all()):
            raise FloatingPointError(
                f"expected finite energies, got another after {c.step} steps of "
                f"{s['time_step']:g}; take a shorter time step or start from a minimum "
                f"({self.dynamics.energy.report()})"
            )
        if exchanging and len(s["ladder"]) > 1:
            self._exchange(odd=(c.step // s["exchange_every"]) % 2 == 1)
        if c.step % s["record_every"] == 0 and c.step > s["equilibration"]:
            self.records["x"].append(self.replicas.x[:, 0].clone())
            self.records["energy"].append(self.replicas.energy[:, 0].clone())
            self.records["bias"].append(self.replicas.bias[:, 0].clone())

    def _exchange(self, odd: bool) -> None:
        self.replicas, source = exchange(self.replicas, self.dynamics.kt, odd, self.generator)
        here = torch.arange(source.shape[1], device=source.device)
        up = (source == here + 1)[:, :-1].sum(0)
        self.accepted[0] += up
        self.accepted[1, int(odd) :: 2] += len(source)
        self.ends = self.ends.gather(1, source)
        self.ends[:, -1][self.ends[:, -1] == 1] = 2
        back = self.ends[:, 0] == 2
        self.round_trips += back.long()
        self.ends[:, 0] = 1

    def _save(self) -> None:
        if self.checkpoint is not None:
            state = {
                "settings": self.settings,
                "counters": asdict(self.counters),
                "replicas": vars(self.replicas),
                "ends": self.ends,
                "accepted": self.accepted,
                "round_trips": self.round_trips,
                "records": {k: torch.stack(v) for k, v in self.records.items() if v},
                "random": self.generator.get_state(),
            }
            save_state(self.checkpoint, state)

    def _restore(self, state: dict[str, Any], device: torch.device) -> None:
        then, now = state["settings"], self.settings
        changed = [k for k in now if now[k] != then.get(k) and k != "n_steps"]
        if changed or now["n_steps"] < state["counters"]["step"]:
            changed = changed or ["n_steps"]
            was = ", ".join(f"{name}={then.get(name)}" for name in changed)
            got = ", ".join(f"{name}={now[name]}" for name in changed)
            raise ValueError(
                f"expected the settings that {self.checkpoint} was written with ({was}), "
                f"got {got}; resume with the same settings, or give another checkpoint"
            )
        self.counters = Counters(**state["counters"])
        self.replicas = Replicas(**{k: v.to(device) for k, v in state["replicas"].items()})
        self.ends, self.accepted, self.round_trips = (
            state[name].to(device) for name in ("ends", "accepted", "round_trips")
        )
        for name, value in state["records"].items():
            self.records[name] = list(value.to(device))
        self.generator.set_state(state["random"])


def broadcast_masses(masses: ArrayLike, x: Tensor, event_shape: torch.Size) -> Tensor:
    """Return masses to be broadcast with configurations, of the dtype of x."""
    found = torch.as_tensor(np.asarray(masses, dtype=np.float64))
    expected = event_shape[:-1]
    if found.shape not in (torch.Size(), expected) or not bool((found > 0).all()):
        raise ValueError(
            f"expected positive masses of shape () or {tuple(expected)}, got {found.tolist()}"
        )
    return found.unsqueeze(-1).to(x)


def check_start(x: Tensor, event_shape: torch.Size) -> None:
    """Refuse positions that are not ``(n_starts, *event_shape)``."""
    if x.dim() < 1 or x.shape[1:] != event_shape or len(x) == 0 or not x.is_floating_point():
        raise ValueError(
            f"expected floating-point start positions of shape "
            f"(n_starts, {', '.join(map(str, event_shape))}), got {tuple(x.shape)} of {x.dtype}; "
            "pass one configuration as x[None]"
        )


def check_settings(s: dict[str, Any]) -> None:
    """Refuse settings that are out of range."""
    for name in ("n_steps", "exchange_every", "record_every"):
        if s[name] < 1:
            raise ValueError(f"expected {name} of at least 1, got {s[name]}")
    if s["n_ladders"] < 2:
        raise ValueError(
            f"expected at least 2 ladders, got {s['n_ladders']}; the spread between them is the "
            "error bar"
        )
    last = s["n_steps"] // s["record_every"] * s["record_every"]
    if not 0 <= s["equilibration"] < last:
        raise ValueError(
            f"expected an equilibration that leaves steps to record, got {s['equilibration']} of "
            f"{s['n_steps']} steps, recorded every {s['record_every']}"
        )
    if not (0 < s["time_step"] < math.inf and 0 <= s["friction"] < math.inf):
        raise ValueError(
            f"expected a time step above 0 and a friction of at least 0, got {s['time_step']} "
            f"and {s['friction']}"
        )
    rungs = s["ladder"]
    rising = all(a < b for a, b in itertools.pairwise(rungs))
    if not rungs or rungs[0] != 1.0 or not rising or not rungs[-1] < math.inf:
        raise ValueError(
            f"expected temperatures relative to the target's, rising from 1, got {rungs}; "
            "see temperature_ladder"
        )
