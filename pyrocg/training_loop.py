"""The loop of a training: steps, evaluations, and the shares of a mixture latent's components."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from pyrocg.cgmodel import Samples
from pyrocg.priors import StratifiedPrior
from pyrocg.tempering import WeightedEnergies
from pyrocg.tempering_faults import expected_log_z
from pyrocg.training_state import TrainingState
from pyrocg.weights import component_shares, stratified_summary, training_shares

__all__ = ["TrainingLoop"]

_MAX_SKIPPED_IN_A_ROW = 100
_SHARE_RATE = 0.3  # at each evaluation, whose weights are noisy


@dataclass
class TrainingLoop:
    """Takes the steps of a training; see :func:`pyrocg.fit`.

    Attributes:
        state: what changes.
        parameters: all that are trained.
        checkpoint: file to write to, and to resume from if it exists.
        checkpoint_seconds: shortest time between two writes.
        interrupted: asked after every step; if true, the training ends with ``KeyboardInterrupt``.
        backward: returns the loss per sample and puts its gradients into the parameters.
    """

    state: TrainingState
    parameters: list[nn.Parameter]
    checkpoint: Path | None
    checkpoint_seconds: float
    interrupted: Callable[[], bool]
    backward: Callable[[], Tensor]

    def __post_init__(self) -> None:
        self.model, self.plan, self.schedule = (
            self.state.model,
            self.state.plan,
            self.state.schedule,
        )

    def train(self, progress: bool) -> str:
        """Take the steps that are left; return why training stopped."""
        if self.checkpoint is not None and self.checkpoint.exists():
            self.state.restore(self.checkpoint)
        else:
            self.model.temper = self.schedule.start
            self._unbalance()
        p, energy = self.state.progress, self.model.target.energy.exact
        started, calls_before = time.monotonic() - p.seconds, energy.calls - p.energy_calls
        saved = time.monotonic()
        bar = tqdm(total=self.plan.steps, initial=p.step, disable=not progress, unit="step")
        converged = self._converged()
        with bar, warnings.catch_warnings():
            # skipped steps are counted; torch takes a skipped first one for a wrong order of calls
            warnings.filterwarnings("ignore", "Encountered .*(inf|NaN)", UserWarning)
            warnings.filterwarnings("ignore", "Detected call of .lr_scheduler.step", UserWarning)
            first = p.step + 1
            if self.plan.compile:
                bar.set_postfix_str("compiling")
            while p.step < self.plan.steps and not converged:
                self._step()
                if p.step == first:
                    bar.set_postfix_str("")
                evaluated = p.step % self.plan.evaluate_every == 0 or p.step == self.plan.steps
                if evaluated:
                    self._evaluate()
                    bar.set_postfix_str(self._describe())
                    converged = self._converged()
                bar.update()
                p.seconds = time.monotonic() - started
                p.energy_calls = energy.calls - calls_before
                if evaluated:
                    p.history["energy_calls"][-1] = float(p.energy_calls)
                if time.monotonic() - saved > self.checkpoint_seconds:
                    self._save()
                    saved = time.monotonic()
                if self.interrupted():
                    self._save()
                    raise KeyboardInterrupt
            if not p.balanced:
                self._balance()
            p.energy_calls = energy.calls - calls_before
        self._save()
        return "converged" if converged else "finished"

    def _save(self) -> None:
        if self.checkpoint is not None:
            self.state.save(self.checkpoint)

    def _unbalance(self) -> None:
        """Train the components of a mixture latent in equal shares until weights are known."""
        if isinstance(self.model.prior, StratifiedPrior):
            self.model.prior.set_shares(torch.ones_like(self.model.prior.shares))

    def _balance(self) -> None:
        """Give the components of a mixture latent their weights."""
        self.state.progress.balanced = True
        if isinstance(self.model.prior, StratifiedPrior):
            samples = [self.model.sample(self.plan.evaluate_samples) for _ in range(10)]
            shares = component_shares(
                torch.cat([s.log_weights for s in samples]),
                torch.cat([s.latents["component"] for s in samples]),
                self.model.prior.shares,
            )
            self.model.prior.set_shares(shares)
            self.state.best_state["guide.prior.shares"] = self.model.prior.shares.clone()

    def _step(self) -> None:
        p, state = self.state.progress, self.state
        state.optimizer.zero_grad(set_to_none=True)
        loss = self.backward()
        norm = nn.utils.clip_grad_norm_(self.parameters, self.plan.clip_norm)
        value = float(loss)
        if math.isfinite(value) and math.isfinite(float(norm)):
            state.optimizer.step()
            p.loss_sum, p.loss_count, p.skipped_in_a_row = p.loss_sum + value, p.loss_count + 1, 0
        else:
            self._skip()
        state.rates.step()
        p.step += 1
        if not self.schedule.needs_samples:
            self.model.temper = self.schedule.next(self.model.temper, p.step / self.plan.steps)

    def _skip(self) -> None:
        p = self.state.progress
        p.skipped, p.skipped_in_a_row = p.skipped + 1, p.skipped_in_a_row + 1
        if p.skipped_in_a_row >= _MAX_SKIPPED_IN_A_ROW:
            report = self.model.target.energy.exact.report()
            raise FloatingPointError(
                f"expected finite losses, got none in {_MAX_SKIPPED_IN_A_ROW} steps in a row; "
                "start from minima, begin at a smaller t, or wrap the energy in CappedEnergy"
                + (f" ({report})" if report else "")
            )

    def _evaluate(self) -> None:
        p, t = self.state.progress, self.model.temper
        samples = self.model.sample(self.plan.evaluate_samples, exact=False)
        elbo, log_z, fraction = self._summary(samples)
        self._share(samples)
        weighted = WeightedEnergies(samples.reduced_energy, samples.log_weights)
        if self.schedule.needs_samples:
            new = self.model.temper = self.schedule.next(t, p.step / self.plan.steps, weighted)
        else:
            later = min(1.0, (p.step + self.plan.evaluate_every) / self.plan.steps)
            new = self.schedule.next(t, later)
        next_log_z, next_error = expected_log_z(weighted, log_z, new - t)
        row = {
            "step": p.step,
            "t": t,
            "loss": p.loss_sum / p.loss_count if p.loss_count else math.nan,
            "elbo": elbo,
            "log_z": log_z,
            "ess": fraction,
            "latent_information": float(samples.latent_log_ratio.mean()),
            "energy_calls": p.energy_calls,
            "next_log_z": next_log_z,
            "next_error": next_error,
        }
        for column, value in row.items():
            p.history[column].append(float(value))
        p.loss_sum, p.loss_count = 0.0, 0
        if t == 1.0:
            self.state.note_best(elbo)

    def _share(self, samples: Samples) -> None:
        """Let the training shares of a mixture latent follow the square roots of its weights."""
        prior = self.model.prior
        if isinstance(prior, StratifiedPrior):
            component = samples.latents["component"]
            weights = component_shares(samples.log_weights, component, prior.shares)
            prior.set_shares(prior.shares.lerp(training_shares(weights), _SHARE_RATE))

    def _summary(self, samples: Samples) -> tuple[float, float, float]:
        """ELBO, log Z and ESS; of a mixture latent with the best shares of its components."""
        prior, log_w = self.model.prior, samples.log_weights
        if isinstance(prior, StratifiedPrior):
            return stratified_summary(log_w, samples.latents["component"], prior.shares)
        one = torch.zeros(len(log_w), dtype=torch.long, device=log_w.device)
        return stratified_summary(log_w, one, log_w.new_ones(1))

    def _converged(self) -> bool:
        patience = self.plan.patience
        return patience is not None and self.state.progress.stale_evaluations >= patience

    def _describe(self) -> str:
        last = {name: column[-1] for name, column in self.state.progress.history.items()}
        return f"t={last['t']:.3g} ELBO={last['elbo']:.2f} ESS={100 * last['ess']:.1f}%"
