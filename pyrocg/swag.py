"""SWAG: a normal density over the weights that training visits at a constant learning rate."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from pyro.infer import ELBO
from torch import Tensor, nn

from pyrocg.cgmodel import CoarseGrainedModel
from pyrocg.conditions import at_target, seeded
from pyrocg.losses import WeightPriorELBO, check_loss
from pyrocg.objectives import PathGradientELBO
from pyrocg.weight_draws import Layout, VectorPosterior, trained_weights
from pyrocg.weight_priors import WeightPrior
from pyrocg.weights import training_shares

__all__ = ["SWAGPosterior"]


@dataclass(frozen=True)
class SWAGPosterior(VectorPosterior):
    r"""The weights that training visits at a constant learning rate, as a normal density,

    .. math:: \theta \sim N\Big(\bar\theta,\; \tfrac12 diag(v) + \tfrac{1}{2(K-1)} D D^\top\Big),

    with mean and variance v of all collected weights and D the deviations of the last K. How wide
    it is depends on the learning rate and on the number of samples of a step, not on N. Source:
    Maddox, Garipov, Izmailov, Vetrov and Wilson (2019), "A simple baseline for Bayesian
    uncertainty in deep learning", equations 1 to 3.

    Attributes:
        names: of the decoder's trained parameters.
        shapes: of these parameters.
        mean: shape ``(n_weights,)``, float64.
        variance: v, shape ``(n_weights,)``.
        deviations: D, shape ``(n_weights, K)``.
        dtype: of the draws.
    """

    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    mean: Tensor = field(repr=False)
    variance: Tensor = field(repr=False)
    deviations: Tensor = field(repr=False)
    dtype: torch.dtype

    @classmethod
    def fit(
        cls,
        model: CoarseGrainedModel,
        steps: int = 1000,
        num_samples: int = 256,
        *,
        learning_rate: float = 1e-3,
        optimizer: Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer] | None = None,
        collect_every: int = 10,
        rank: int = 20,
        loss: ELBO | None = None,
        weight_prior: WeightPrior | None = None,
        gibbs_scale: float | None = None,
        clip_norm: float = 100.0,
        seed: int = 0,
    ) -> SWAGPosterior:
        """Train on at a constant rate and collect the decoder. The model is left as it was.

        Args:
            model: trained.
            steps: number of further steps; those without finite loss are left out.
            num_samples: samples, and energy calls, in each step.
            learning_rate: of the default optimiser.
            optimizer: from parameters to an optimiser; default ``torch.optim.Adam``. The source
                has SGD, which stiff coordinates let diverge at one rate for all weights.
            collect_every: steps between two collections.
            rank: number K of the last deviations that are kept, at least 2.
            loss: a Pyro ELBO; default :class:`~pyrocg.objectives.PathGradientELBO`. Not
                ``TraceMeanField_ELBO``, which is wrong for this pair.
            weight_prior: of the decoder's weights, as in :func:`pyrocg.fit`.
            gibbs_scale: N beside the weight prior; must be given with it.
            clip_norm: bound on the norm of the gradient of all parameters; far above the usual
                norm, since the noise of gradients is what the spread of the weights comes from.
            seed: of the random numbers; the global generators are left as they were.

        Raises:
            ValueError: an argument is out of range, the loss is ``TraceMeanField_ELBO`` or has no
                gradient, or fewer than K weights were collected.
        """
        if rank < 2 or collect_every < 1 or steps < rank * collect_every:
            raise ValueError(
                "expected a rank of at least 2 and steps for so many collections, got rank "
                f"{rank}, {steps} steps and collect_every {collect_every}"
            )
        if (weight_prior is None) != (gibbs_scale is None):
            raise ValueError("expected weight_prior and gibbs_scale together, got one of them")
        check_loss(loss)
        objective: ELBO = loss or PathGradientELBO()
        if weight_prior is not None and gibbs_scale is not None:
            objective = WeightPriorELBO(objective, weight_prior, gibbs_scale)
        make = optimizer or (lambda p: torch.optim.Adam(p, lr=learning_rate))
        before = {name: value.clone() for name, value in model.state_dict().items()}
        gradients = [(p, p.grad) for p in model.parameters()]
        collected = _Moments(Layout.of(trained_weights(model.decoder)), rank)
        try:
            for step in _train_on(model, objective, make, steps, num_samples, clip_norm, seed):
                if step % collect_every == 0:
                    collected.add(trained_weights(model.decoder))
        finally:
            model.load_state_dict(before)
            for p, gradient in gradients:
                p.grad = gradient
        return cls(*collected.result(), next(iter(trained_weights(model.decoder).values())).dtype)

    def _vector(self, generator: torch.Generator) -> Tensor:
        k = self.deviations.shape[1]
        independent = torch.randn(len(self.mean), dtype=torch.float64, generator=generator)
        along = torch.randn(k, dtype=torch.float64, generator=generator)
        spread = (0.5 * self.variance).sqrt() * independent
        return self.mean + spread + self.deviations @ along / math.sqrt(2 * (k - 1))


def _train_on(
    model: CoarseGrainedModel,
    objective: ELBO,
    make: Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer],
    steps: int,
    num_samples: int,
    clip_norm: float,
    seed: int,
) -> Iterable[int]:
    """Take steps at a constant rate; yield the number of each one taken, from 1."""
    elbo: Any = objective(model.model, model.guide)
    parameters = [p for p in elbo.parameters() if p.requires_grad]
    optimizer = make(parameters)
    with seeded(seed, parameters), at_target(model, training_shares):
        for step in range(1, steps + 1):
            optimizer.zero_grad(set_to_none=True)
            loss = elbo(num_samples) / num_samples
            loss.backward()
            norm = nn.utils.clip_grad_norm_(parameters, clip_norm)
            if math.isfinite(float(loss.detach())) and math.isfinite(float(norm)):
                optimizer.step()
                yield step


class _Moments:
    """Running mean and variance of weights, and the last K of them."""

    def __init__(self, layout: Layout, rank: int) -> None:
        self.layout, self.rank, self.n = layout, rank, 0
        self.mean: Any = 0.0
        self.square: Any = 0.0
        self.last: list[Tensor] = []

    def add(self, parameters: Mapping[str, Tensor]) -> None:
        weights = self.layout.flatten(parameters)
        self.n += 1
        change = weights - self.mean
        self.mean = self.mean + change / self.n
        self.square = self.square + change * (weights - self.mean)
        self.last = [*self.last[1 - self.rank :], weights]

    def result(self) -> tuple[Any, Any, Tensor, Tensor, Tensor]:
        if self.n < self.rank:
            raise ValueError(
                f"expected at least {self.rank} collected weights, got {self.n}: too many steps "
                "had no finite loss; lower the learning rate"
            )
        deviations = torch.stack(self.last, 1) - self.mean[:, None]
        return self.layout.names, self.layout.shapes, self.mean, self.square / self.n, deviations
