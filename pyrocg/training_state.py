"""What a training has come to: its result, its progress, and the checkpoint that holds both."""

from __future__ import annotations

import math
import warnings
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pyrocg.cgmodel import CoarseGrainedModel
from pyrocg.checkpoint import load_state, put_state, save_state
from pyrocg.conditions import gpus_of
from pyrocg.losses import WeightPriorELBO
from pyrocg.tempering import TemperingSchedule
from pyrocg.tempering_faults import find_tempering_faults

__all__ = ["FitResult", "Plan", "Progress", "TrainingState"]

_COLUMNS = (
    "step",
    "t",
    "loss",
    "elbo",
    "log_z",
    "ess",
    "latent_information",
    "energy_calls",
    "next_log_z",
    "next_error",
)

_EARLIER = {"compile": False}
"""Settings that checkpoints of earlier versions lack."""


@dataclass(frozen=True)
class FitResult:
    """What :func:`pyrocg.fit` returns.

    Attributes:
        model: the trained model, in its last state; see :meth:`use_best`.
        steps: number of steps taken, over all resumed runs.
        stopped: "finished", or "converged" by early stopping.
        seconds: wall time, over all resumed runs.
        energy_calls: configurations whose energy was evaluated, over all resumed runs.
        skipped: steps left out because loss or gradient was not finite.
        history: columns of the evaluations during training: step, t, loss (mean since the last
            evaluation, nats per sample, with the weight prior's part), elbo, log_z
            and ess (fraction) at t, of a mixture latent with the best shares of its components,
            latent_information (see :attr:`Samples.latent_log_ratio`), energy_calls, next_log_z and
            next_error (log Z that is expected at the t of the next evaluation, see
            :func:`~pyrocg.tempering_faults.expected_log_z`).
        best_step: step of the best ELBO at t = 1.
        best_state: the model's state there.
    """

    model: CoarseGrainedModel
    steps: int
    stopped: str
    seconds: float
    energy_calls: int
    skipped: int
    history: dict[str, list[float]]
    best_step: int
    best_state: dict[str, Tensor] = field(repr=False)

    def use_best(self) -> CoarseGrainedModel:
        """Put the model into its best state and return it."""
        self.model.load_state_dict(self.best_state)
        return self.model


@dataclass(frozen=True)
class Plan:
    """The numbers of a training that a resumed run must share; see :func:`pyrocg.fit`."""

    steps: int
    num_samples: int
    clip_norm: float
    warmup: float
    evaluate_every: int
    evaluate_samples: int
    patience: int | None
    seed: int
    compile: bool


@dataclass
class Progress:
    """The plain numbers that a checkpoint holds."""

    step: int = 0
    seconds: float = 0.0
    energy_calls: int = 0
    skipped: int = 0
    skipped_in_a_row: int = 0
    loss_sum: float = 0.0
    loss_count: int = 0
    best_step: int = 0
    best_elbo: float = -math.inf
    stale_evaluations: int = 0
    balanced: bool = False
    history: dict[str, list[float]] = field(default_factory=lambda: {c: [] for c in _COLUMNS})


@dataclass
class TrainingState:
    """All that changes in a training, and how it is saved, restored and handed out.

    Attributes:
        model: trained in place.
        elbo: the objective, a module that returns the loss of n samples.
        optimizer: of its parameters.
        rates: the plan of its learning rates.
        schedule: of t.
        plan: what stays the same.
        progress: how far it is.
        best_state: the model's state at the best ELBO at t = 1.
    """

    model: CoarseGrainedModel
    elbo: nn.Module
    optimizer: torch.optim.Optimizer
    rates: torch.optim.lr_scheduler.LambdaLR
    schedule: TemperingSchedule
    plan: Plan
    progress: Progress = field(default_factory=Progress)

    def __post_init__(self) -> None:
        self.best_state = self._model_state()

    def note_best(self, elbo: float) -> None:
        """Keep the model if its ELBO at t = 1 is the best so far."""
        p = self.progress
        p.stale_evaluations = 0 if elbo > p.best_elbo + 0.01 else p.stale_evaluations + 1
        if elbo > p.best_elbo:
            p.best_elbo, p.best_step, self.best_state = elbo, p.step, self._model_state()

    def save(self, path: Path) -> None:
        """Write everything, with the random numbers of the CPU and of the GPUs in use.

        Raises:
            OSError: the file cannot be written; what was there before is untouched.
        """
        state = {
            "model": self.model.state_dict(),
            "best": self.best_state,
            "optimizer": self.optimizer.state_dict(),
            "rates": self.rates.state_dict(),
            "counters": asdict(self.progress),
            "settings": self._settings(),
            "random": torch.get_rng_state(),
            "cuda_random": [torch.cuda.get_rng_state(gpu) for gpu in self._gpus()],
        }
        save_state(path, state)

    def restore(self, path: Path) -> None:
        """Read what :meth:`save` wrote.

        Raises:
            ValueError: it was written with other settings, or for another model.
        """
        state = load_state(path)
        then, now = _EARLIER | state["settings"], self._settings()
        groups, wanted = len(then.get("base_rates", [])), len(now["base_rates"])
        if groups != wanted:
            raise ValueError(
                f"expected {now['optimizer']} with {wanted} groups of parameters in {path}, got "
                f"{then.get('optimizer')} with {groups}; resume with the same optimiser and model "
                "and the same version of pyrocg, or give another checkpoint"
            )
        changed = [name for name in now if now[name] != then.get(name)]
        if changed:
            was = ", ".join(f"{name}={then.get(name)}" for name in changed)
            got = ", ".join(f"{name}={now[name]}" for name in changed)
            raise ValueError(
                f"expected the settings that {path} was written with ({was}), "
                f"got {got}; resume with the same settings, or give another checkpoint"
            )
        if set(state["counters"]["history"]) != set(_COLUMNS):
            raise ValueError(
                f"expected the columns of history of this version of pyrocg in {path}, got those "
                "of another version; train again"
            )
        put_state(self.model, state["model"], path)
        self.best_state = state["best"]
        self.optimizer.load_state_dict(state["optimizer"])
        self.rates.load_state_dict(state["rates"])
        self.progress = Progress(**state["counters"])
        torch.set_rng_state(state["random"])
        for gpu, random in zip(self._gpus(), state["cuda_random"], strict=False):
            torch.cuda.set_rng_state(random, gpu)

    def result(self, stopped: str) -> FitResult:
        """Collect what the user gets, and warn of what went wrong."""
        p = self.progress
        information = torch.tensor(p.history["latent_information"][-3:])
        if len(information) == 3 and float(information.mean()) < 0.05:
            warnings.warn(
                f"the encoder learned almost nothing: {information.mean():.3f} nats of information "
                "about u in z (z-collapse); use a decoder with less freedom given z, or more modes "
                "in the prior",
                stacklevel=3,
            )
        for fault in find_tempering_faults(p.history, self.schedule, self.plan.evaluate_samples):
            warnings.warn(str(fault), stacklevel=3)
        if p.best_elbo == -math.inf:  # t never reached 1
            self.best_state, p.best_step = self._model_state(), p.step
        return FitResult(
            model=self.model,
            steps=p.step,
            stopped=stopped,
            seconds=p.seconds,
            energy_calls=p.energy_calls,
            skipped=p.skipped,
            history=p.history,
            best_step=p.best_step,
            best_state=self.best_state,
        )

    def _gpus(self) -> list[int]:
        """The GPUs in use; a checkpoint leaves the generators of all others alone."""
        return gpus_of(self.model.parameters())

    def _model_state(self) -> dict[str, Tensor]:
        return {name: value.clone() for name, value in self.model.state_dict().items()}

    def _settings(self) -> dict[str, Any]:
        """What must be the same for a resumed run to give the same numbers."""
        objective: Any = self.elbo.elbo
        prior: dict[str, Any] = {"weight_prior": None, "gibbs_scale": None}
        if isinstance(objective, WeightPriorELBO):
            objective, prior = objective.base, objective.settings()
        return {
            **prior,
            **asdict(self.plan),
            "base_rates": list(self.rates.base_lrs),
            "schedule": repr(self.schedule),
            "loss": type(objective).__name__,
            "optimizer": type(self.optimizer).__name__,
            "beta": self.model.target.beta,
        }
