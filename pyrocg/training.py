"""Fit a coarse-grained model by stochastic variational inference, with tempering."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from pyro.infer import ELBO, TraceMeanField_ELBO
from torch import Tensor, nn
from tqdm.auto import tqdm

from pyrocg.cgmodel import CoarseGrainedModel, Samples
from pyrocg.checkpoint import load_state, save_state
from pyrocg.objectives import PathGradientELBO
from pyrocg.priors import StratifiedPrior
from pyrocg.tempering import FixedSchedule, TemperingSchedule, WeightedEnergies
from pyrocg.weight_priors import WeightPrior, WeightPriorELBO
from pyrocg.weights import component_shares, stratified_summary, training_shares

__all__ = ["FitResult", "default_optimizer", "fit"]

_COLUMNS = ("step", "t", "loss", "elbo", "log_z", "ess", "latent_information", "energy_calls")
_MAX_SKIPPED_IN_A_ROW = 100
_SHARE_RATE = 0.3  # at each evaluation, whose weights are noisy


@dataclass(frozen=True)
class FitResult:
    """What :func:`fit` returns.

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
            latent_information (see :attr:`Samples.latent_log_ratio`), energy_calls.
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


def fit(
    model: CoarseGrainedModel,
    steps: int = 6000,
    num_samples: int = 256,
    *,
    learning_rate: float = 5e-3,
    optimizer: Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer] | None = None,
    loss: ELBO | None = None,
    schedule: TemperingSchedule | None = None,
    weight_prior: WeightPrior | None = None,
    gibbs_scale: float | None = None,
    clip_norm: float = 100.0,
    warmup: float = 0.02,
    evaluate_every: int = 100,
    evaluate_samples: int = 1024,
    patience: int | None = None,
    seed: int = 0,
    checkpoint: str | Path | None = None,
    checkpoint_seconds: float = 30.0,
    progress: bool = True,
    interrupted: Callable[[], bool] | None = None,
) -> FitResult:
    r"""Minimise the reverse KL by SVI, while t goes to 1 by a schedule.

    Each step minimises ``loss`` (a Pyro ELBO, divided by ``num_samples``) on fresh samples. The
    learning rate warms up linearly and falls to zero along a cosine. Steps whose loss or gradient
    is not finite are left out and counted. With ``checkpoint``, the whole state is written
    atomically at intervals and at the end; if the file exists the run continues from it and gives
    the same numbers as one that was never stopped; other settings are refused. The components of
    a mixture latent (:class:`~pyrocg.priors.StratifiedPrior`) are trained in shares that follow the
    square roots of their weights :math:`p_k`, at least a fifth of an equal share each: between
    :math:`p_k`, which the divergence of the whole asks for, and equal shares, which rare components
    ask for. At the end each gets its weight. All by importance sampling.

    Args:
        model: trained in place.
        steps: number of steps. The defaults of steps, num_samples and learning_rate suit
            :meth:`CoarseGrainedModel.from_basins` of a small molecule.
        num_samples: samples, and energy calls, in each step.
        learning_rate: peak learning rate of the default optimiser.
        optimizer: from parameters to an optimiser; default SOAP, Adam in the eigenbasis of
            Shampoo's preconditioner (Vyas et al. 2024, arXiv:2409.11321), which needs a
            quarter to a third of Adam's steps here. Its own learning rates are scaled by warmup
            and cosine.
        loss: a Pyro ELBO; default :class:`~pyrocg.objectives.PathGradientELBO`. Not
            ``TraceMeanField_ELBO``, which is wrong for this pair.
        schedule: of t; default no tempering.
        weight_prior: of the decoder's weights, from named parameters to a log density, see
            :mod:`pyrocg.weight_priors`; :math:`-\log p(\theta) / N` is added to the loss per
            sample. Default none.
        gibbs_scale: N, the number of observations that the divergence is worth beside the weight
            prior; default ``steps * num_samples``, the samples of the run.
        clip_norm: bound on the norm of the gradient of all parameters.
        warmup: fraction of the steps in which the learning rate warms up.
        evaluate_every: steps between evaluations of ELBO, log Z, ESS (and adaptive tempering).
        evaluate_samples: samples of each evaluation; their energy calls are counted.
        patience: stop early when t = 1 and the ELBO has not risen by 0.01 nats above its best for
            so many evaluations; default never.
        seed: of the random numbers; the global generators are left as they were.
        checkpoint: file to write to, and to resume from if it exists.
        checkpoint_seconds: shortest time between two writes.
        progress: show a progress bar.
        interrupted: asked after every step; if true, a checkpoint is written and the training
            ends with ``KeyboardInterrupt``, so that a signal costs nothing.

    Raises:
        ValueError: an argument is out of range, or other than in the checkpoint to resume from.
        FileNotFoundError: the checkpoint's folder does not exist.
        FloatingPointError: 100 steps in a row gave no finite loss and gradient.
    """
    _check_counts(
        steps=steps,
        num_samples=num_samples,
        evaluate_every=evaluate_every,
        evaluate_samples=evaluate_samples,
        patience=1 if patience is None else patience,
    )
    _check_rates(learning_rate, clip_norm, warmup)
    _check_loss(loss.base if isinstance(loss, WeightPriorELBO) else loss)
    if gibbs_scale is not None and weight_prior is None:
        raise ValueError("expected a weight_prior beside gibbs_scale, got none; give both")
    if checkpoint is not None and not Path(checkpoint).parent.is_dir():
        raise FileNotFoundError(f"expected the folder of {checkpoint} to exist; make it first")
    schedule = schedule or FixedSchedule()
    objective = loss or PathGradientELBO()
    if weight_prior is not None:
        scale = steps * num_samples if gibbs_scale is None else gibbs_scale
        objective = WeightPriorELBO(objective, weight_prior, scale)
    elbo = objective(model.model, model.guide)
    parameters = [p for p in elbo.parameters() if p.requires_grad]
    if optimizer is None:
        opt: torch.optim.Optimizer = default_optimizer(parameters, learning_rate)
    else:
        opt = optimizer(parameters)
    run = _Run(
        model=model,
        elbo=elbo,
        parameters=parameters,
        optimizer=opt,
        rates=torch.optim.lr_scheduler.LambdaLR(opt, _warmup_cosine(steps, warmup)),
        schedule=schedule,
        steps=steps,
        num_samples=num_samples,
        clip_norm=clip_norm,
        warmup=warmup,
        evaluate_every=evaluate_every,
        evaluate_samples=evaluate_samples,
        patience=patience,
        seed=seed,
        checkpoint=None if checkpoint is None else Path(checkpoint),
        checkpoint_seconds=checkpoint_seconds,
        interrupted=interrupted or (lambda: False),
    )
    with torch.random.fork_rng(devices=_cuda_devices(parameters)):
        torch.manual_seed(seed)
        stopped = run.train(progress)
    return run.result(stopped)


@dataclass
class _Counters:
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
class _Run:
    model: CoarseGrainedModel
    elbo: nn.Module
    parameters: list[nn.Parameter]
    optimizer: torch.optim.Optimizer
    rates: torch.optim.lr_scheduler.LambdaLR
    schedule: TemperingSchedule
    steps: int
    num_samples: int
    clip_norm: float
    warmup: float
    evaluate_every: int
    evaluate_samples: int
    patience: int | None
    seed: int
    checkpoint: Path | None
    checkpoint_seconds: float
    interrupted: Callable[[], bool]

    def __post_init__(self) -> None:
        self.counters = _Counters()
        self.best_state = self._model_state()

    def train(self, progress: bool) -> str:
        """Take the steps that are left; return why training stopped."""
        if self.checkpoint is not None and self.checkpoint.exists():
            self._restore(load_state(self.checkpoint))
        else:
            self.model.temper = self.schedule.start
            self._unbalance()
        c, energy = self.counters, self.model.target.energy.exact
        started, calls_before = time.monotonic() - c.seconds, energy.calls - c.energy_calls
        saved = time.monotonic()
        bar = tqdm(total=self.steps, initial=c.step, disable=not progress, unit="step")
        converged = self._converged()
        with bar, warnings.catch_warnings():
            # skipped steps are counted; torch takes a skipped first one for a wrong order of calls
            warnings.filterwarnings("ignore", "Encountered .*(inf|NaN)", UserWarning)
            warnings.filterwarnings("ignore", "Detected call of .lr_scheduler.step", UserWarning)
            while c.step < self.steps and not converged:
                self._step()
                evaluated = c.step % self.evaluate_every == 0 or c.step == self.steps
                if evaluated:
                    self._evaluate()
                    bar.set_postfix_str(self._describe())
                    converged = self._converged()
                bar.update()
                c.seconds = time.monotonic() - started
                c.energy_calls = energy.calls - calls_before
                if evaluated:
                    c.history["energy_calls"][-1] = float(c.energy_calls)
                if time.monotonic() - saved > self.checkpoint_seconds:
                    self._save()
                    saved = time.monotonic()
                if self.interrupted():
                    self._save()
                    raise KeyboardInterrupt
            if not c.balanced:
                self._balance()
            c.energy_calls = energy.calls - calls_before
        self._save()
        return "converged" if converged else "finished"

    def _unbalance(self) -> None:
        """Train the components of a mixture latent in equal shares until weights are known."""
        if isinstance(self.model.prior, StratifiedPrior):
            self.model.prior.set_shares(torch.ones_like(self.model.prior.shares))

    def _balance(self) -> None:
        """Give the components of a mixture latent their weights."""
        self.counters.balanced = True
        if isinstance(self.model.prior, StratifiedPrior):
            samples = [self.model.sample(self.evaluate_samples) for _ in range(10)]
            shares = component_shares(
                torch.cat([s.log_weights for s in samples]),
                torch.cat([s.latents["component"] for s in samples]),
                self.model.prior.shares,
            )
            self.model.prior.set_shares(shares)
            self.best_state["guide.prior.shares"] = self.model.prior.shares.clone()

    def _step(self) -> None:
        c = self.counters
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.elbo(self.num_samples) / self.num_samples
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.parameters, self.clip_norm)
        value = float(loss.detach())
        if math.isfinite(value) and math.isfinite(float(norm)):
            self.optimizer.step()
            c.loss_sum, c.loss_count, c.skipped_in_a_row = c.loss_sum + value, c.loss_count + 1, 0
        else:
            c.skipped, c.skipped_in_a_row = c.skipped + 1, c.skipped_in_a_row + 1
            if c.skipped_in_a_row >= _MAX_SKIPPED_IN_A_ROW:
                report = self.model.target.energy.exact.report()
                raise FloatingPointError(
                    f"expected finite losses, got none in {_MAX_SKIPPED_IN_A_ROW} steps in a row; "
                    "start from minima, begin at a smaller t, or wrap the energy in CappedEnergy"
                    + (f" ({report})" if report else "")
                )
        self.rates.step()
        c.step += 1
        if not self.schedule.needs_samples:
            self.model.temper = self.schedule.next(self.model.temper, c.step / self.steps)

    def _evaluate(self) -> None:
        c, t = self.counters, self.model.temper
        samples = self.model.sample(self.evaluate_samples, exact=False)
        elbo, log_z, fraction = self._summary(samples)
        self._share(samples)
        row = {
            "step": c.step,
            "t": t,
            "loss": c.loss_sum / c.loss_count if c.loss_count else math.nan,
            "elbo": elbo,
            "log_z": log_z,
            "ess": fraction,
            "latent_information": float(samples.latent_log_ratio.mean()),
            "energy_calls": c.energy_calls,
        }
        for column, value in row.items():
            c.history[column].append(float(value))
        c.loss_sum, c.loss_count = 0.0, 0
        if t == 1.0:
            self._note_best(elbo)
        if self.schedule.needs_samples:
            weighted = WeightedEnergies(samples.reduced_energy, samples.log_weights)
            self.model.temper = self.schedule.next(t, c.step / self.steps, weighted)

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

    def _note_best(self, elbo: float) -> None:
        c = self.counters
        c.stale_evaluations = 0 if elbo > c.best_elbo + 0.01 else c.stale_evaluations + 1
        if elbo > c.best_elbo:
            c.best_elbo, c.best_step, self.best_state = elbo, c.step, self._model_state()

    def _converged(self) -> bool:
        return self.patience is not None and self.counters.stale_evaluations >= self.patience

    def _describe(self) -> str:
        last = {name: column[-1] for name, column in self.counters.history.items()}
        return f"t={last['t']:.3g} ELBO={last['elbo']:.2f} ESS={100 * last['ess']:.1f}%"

    def _model_state(self) -> dict[str, Tensor]:
        return {name: value.clone() for name, value in self.model.state_dict().items()}

    def _save(self) -> None:
        if self.checkpoint is not None:
            state = {
                "model": self.model.state_dict(),
                "best": self.best_state,
                "optimizer": self.optimizer.state_dict(),
                "rates": self.rates.state_dict(),
                "counters": asdict(self.counters),
                "settings": self._settings(),
                "random": torch.get_rng_state(),
                "cuda_random": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
            }
            save_state(self.checkpoint, state)

    def _settings(self) -> dict[str, Any]:
        """What must be the same for a resumed run to give the same numbers."""
        objective: Any = self.elbo.elbo
        prior: dict[str, Any] = {"weight_prior": None, "gibbs_scale": None}
        if isinstance(objective, WeightPriorELBO):
            objective, prior = objective.base, objective.settings()
        return {
            **prior,
            "steps": self.steps,
            "num_samples": self.num_samples,
            "seed": self.seed,
            "clip_norm": self.clip_norm,
            "evaluate_every": self.evaluate_every,
            "evaluate_samples": self.evaluate_samples,
            "patience": self.patience,
            "base_rates": list(self.rates.base_lrs),
            "warmup": self.warmup,
            "schedule": repr(self.schedule),
            "loss": type(objective).__name__,
            "optimizer": type(self.optimizer).__name__,
            "beta": self.model.target.beta,
        }

    def _restore(self, state: dict[str, Any]) -> None:
        then, now = state["settings"], self._settings()
        changed = [name for name in now if now[name] != then.get(name)]
        if changed:
            was = ", ".join(f"{name}={then.get(name)}" for name in changed)
            got = ", ".join(f"{name}={now[name]}" for name in changed)
            raise ValueError(
                f"expected the settings that {self.checkpoint} was written with ({was}), "
                f"got {got}; resume with the same settings, or give another checkpoint"
            )
        self.model.load_state_dict(state["model"])
        self.best_state = state["best"]
        self.optimizer.load_state_dict(state["optimizer"])
        self.rates.load_state_dict(state["rates"])
        self.counters = _Counters(**state["counters"])
        torch.set_rng_state(state["random"])
        if state["cuda_random"]:
            torch.cuda.set_rng_state_all(state["cuda_random"])

    def result(self, stopped: str) -> FitResult:
        """Collect what the user gets, and warn of what went wrong."""
        c = self.counters
        information = torch.tensor(c.history["latent_information"][-3:])
        if len(information) == 3 and float(information.mean()) < 0.05:
            warnings.warn(
                f"the encoder learned almost nothing: {information.mean():.3f} nats of information "
                "about u in z (z-collapse); use a decoder with less freedom given z, or more modes "
                "in the prior",
                stacklevel=3,
            )
        if c.best_elbo == -math.inf:  # t never reached 1
            self.best_state, c.best_step = self._model_state(), c.step
        return FitResult(
            model=self.model,
            steps=c.step,
            stopped=stopped,
            seconds=c.seconds,
            energy_calls=c.energy_calls,
            skipped=c.skipped,
            history=c.history,
            best_step=c.best_step,
            best_state=self.best_state,
        )


def default_optimizer(
    parameters: Iterable[nn.Parameter], learning_rate: float
) -> torch.optim.Optimizer:
    """Build the optimiser that :func:`fit` takes by default, SOAP (Vyas et al. 2024).

    Args:
        parameters: what it trains.
        learning_rate: its learning rate.
    """
    from pytorch_optimizer import SOAP  # imports slowly

    return SOAP(
        list(parameters),
        lr=learning_rate,
        betas=(0.9, 0.99),
        shampoo_beta=0.95,
        weight_decay=0.0,
        max_precondition_dim=512,
    )


def _check_counts(**counts: int) -> None:
    for name, value in counts.items():
        if value < 1:
            raise ValueError(f"expected {name} of at least 1, got {value}")


def _check_rates(learning_rate: float, clip_norm: float, warmup: float) -> None:
    if not learning_rate > 0:
        raise ValueError(f"expected a learning rate above 0, got {learning_rate}")
    if not clip_norm > 0:
        raise ValueError(f"expected clip_norm above 0, got {clip_norm}")
    if not 0 <= warmup <= 1:
        raise ValueError(f"expected warmup in [0, 1], got {warmup}")


def _check_loss(loss: ELBO | None) -> None:
    if isinstance(loss, TraceMeanField_ELBO):
        raise ValueError(
            "expected an ELBO by samples, got TraceMeanField_ELBO, which is wrong for this pair: "
            "its analytic KL takes u as independent of z; use Trace_ELBO"
        )
    if loss is not None and not hasattr(loss, "differentiable_loss"):
        raise ValueError(
            f"expected an ELBO with a differentiable loss, got {type(loss).__name__}, which has "
            "none; use it with pyro.infer.SVI"
        )


def _warmup_cosine(steps: int, warmup: float) -> Callable[[int], float]:
    def factor(step: int) -> float:
        rise = min(1.0, (step + 1) / max(1.0, warmup * steps))
        return rise * 0.5 * (1.0 + math.cos(math.pi * min(1.0, step / steps)))

    return factor


def _cuda_devices(parameters: list[nn.Parameter]) -> list[int]:
    return sorted({p.device.index or 0 for p in parameters if p.device.type == "cuda"})
