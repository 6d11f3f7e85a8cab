"""Fit a coarse-grained model by stochastic variational inference, with tempering."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from pyro.infer import ELBO
from pyro.optim import PyroOptim
from torch import nn

from pyrocg.cgmodel import CoarseGrainedModel
from pyrocg.compiled_loss import CompiledLoss, backward
from pyrocg.conditions import seeded
from pyrocg.losses import WeightPriorELBO, check_loss
from pyrocg.objectives import PathGradientELBO
from pyrocg.optimization import default_optimizer, warmup_cosine
from pyrocg.tempering import FixedSchedule, TemperingSchedule
from pyrocg.training_loop import TrainingLoop
from pyrocg.training_state import FitResult, Plan, TrainingState
from pyrocg.weight_priors import WeightPrior

__all__ = ["FitResult", "default_optimizer", "fit"]


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
    clip_norm: float = 2.0,
    warmup: float = 0.02,
    evaluate_every: int = 100,
    evaluate_samples: int = 1024,
    patience: int | None = None,
    seed: int = 0,
    compile: bool = False,
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
        clip_norm: bound on the norm of the gradient of all parameters. A sample with overlapping
            atoms has a gradient thousands of times larger than the others; not bounded, it makes
            the optimiser's steps small for about a hundred steps. Larger molecules exceed the
            default in most steps, which does no harm: the optimiser rescales gradients.
        warmup: fraction of the steps in which the learning rate warms up.
        evaluate_every: steps between evaluations of ELBO, log Z, ESS (and adaptive tempering).
        evaluate_samples: samples of each evaluation; their energy calls are counted.
        patience: stop early when t = 1 and the ELBO has not risen by 0.01 nats above its best for
            so many evaluations; default never.
        seed: of the random numbers; the global generators are left as they were.
        compile: compile loss and gradients to one program before the first step, which takes a
            minute or two (less when torch still has it on disk) and makes a step about 30 %
            shorter; see :class:`~pyrocg.compiled_loss.CompiledLoss`, also for what must not be
            compiled. Numbers are the same within rounding.
        checkpoint: file to write to, and to resume from if it exists.
        checkpoint_seconds: shortest time between two writes.
        progress: show a progress bar.
        interrupted: asked after every step; if true, a checkpoint is written and the training
            ends with ``KeyboardInterrupt``, so that a signal costs nothing.

    Raises:
        ValueError: an argument is out of range, or other than in the checkpoint to resume from.
        TypeError: ``optimizer`` does not give a torch optimiser.
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
    check_loss(loss)
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
        opt = _built(optimizer, parameters)
    plan = Plan(
        steps=steps,
        num_samples=num_samples,
        clip_norm=clip_norm,
        warmup=warmup,
        evaluate_every=evaluate_every,
        evaluate_samples=evaluate_samples,
        patience=patience,
        seed=seed,
        compile=compile,
    )
    rates = torch.optim.lr_scheduler.LambdaLR(opt, warmup_cosine(steps, warmup))
    state = TrainingState(model, elbo, opt, rates, schedule, plan)
    loop = TrainingLoop(
        state,
        parameters,
        None if checkpoint is None else Path(checkpoint),
        checkpoint_seconds,
        interrupted or (lambda: False),
        CompiledLoss(elbo, model.target, num_samples)
        if compile
        else partial(backward, elbo, num_samples),
    )
    with seeded(seed, parameters):
        stopped = loop.train(progress)
    return state.result(stopped)


def _built(optimizer: Any, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    """The optimiser of the parameters; Pyro's own ones and finished ones of torch are refused."""
    made = None
    if callable(optimizer) and not isinstance(optimizer, PyroOptim):
        try:
            made = optimizer(parameters)
        except AssertionError:  # one of pyro.optim's functions
            made = None
    if not isinstance(made, torch.optim.Optimizer):
        raise TypeError(
            "expected a function from parameters to a torch optimiser, such as "
            f"`lambda p: torch.optim.Adam(p, lr=1e-3)`, got {_name(optimizer, made)}; "
            "pyro.optim belongs to pyro.infer.SVI"
        )
    return made


def _name(optimizer: Any, made: Any) -> str:
    if made is not None:
        return f"a function to {type(made).__name__}"
    return getattr(optimizer, "__name__", type(optimizer).__name__)


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
