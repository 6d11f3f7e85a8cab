"""The Laplace approximation of the Gibbs posterior over the decoder's weights, and its scale."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from pyro.infer import ELBO
from torch import Tensor, nn

from pyrocg.cgmodel import CoarseGrainedModel
from pyrocg.conditions import at_target, seeded
from pyrocg.curvature import Fisher, has_score
from pyrocg.information import Information, Spread, check_full, estimate_information
from pyrocg.networks import last_layers, with_state
from pyrocg.weight_draws import Layout, VectorPosterior, trained_weights
from pyrocg.weight_priors import GaussianWeightPrior, WeightPrior, prior_precision
from pyrocg.weights import bound, training_shares

__all__ = ["LaplacePosterior"]

_WIDTHS = (1.0, 0.3, 0.1, 0.03, 0.01)
_PROBES, _PROBE_SAMPLES = 8, 256
_MOST_EXCESS, _NEGLIGIBLE = 1.0, 0.02  # nats


@dataclass(frozen=True)
class LaplacePosterior(VectorPosterior):
    r"""The Laplace approximation of the Gibbs posterior, a normal density at the trained weights,

    .. math:: \theta \sim N\big(\hat\theta,\; (\Lambda + N F)^{-1}\big)

    with Λ the precision of the weight prior, N the Gibbs scale and F the curvature of the KL
    divergence, see :mod:`pyrocg.curvature`. Draws are

    .. math:: \theta = \hat\theta + S\,\big(\epsilon + Q\,(c - 1)\,Q^\top \epsilon\big), \quad
              \epsilon \sim N(0, I),

    with S diagonal, Q orthonormal columns and c > 0 (at most 1 for "low_rank" and "diagonal").
    Source: MacKay (1992), "A practical Bayesian framework for backpropagation networks"; Daxberger
    and others (2021), "Laplace redux"; Halko, Martinsson and Tropp (2011) for the randomised
    eigenvectors.

    Attributes:
        names: of the decoder's parameters that are random; the others stay as trained.
        shapes: of these parameters.
        mean: :math:`\hat\theta`, shape ``(n_weights,)``, float64.
        std: the diagonal of S, shape ``(n_weights,)``.
        directions: Q, shape ``(n_weights, rank)``.
        shrinkage: c, shape ``(rank,)``.
        gibbs_scale: N.
        dtype: of the draws.
        prior_scale: σ of the default weight prior; NaN with another prior. Directions that the
            samples do not determine have no effect on the divergence to second order, so their
            width is the prior's alone; but draws that go far along them leave the parabola. σ is
            the widest for which the median over 8 draws of the measured excess, on 256 samples
            with common random numbers, is at most 1 nat and at most twice ``excess`` (and 0.02);
            0.01 if there is none.
        excess: :math:`\tfrac12 tr(F\,Cov)`, how many nats farther from the Boltzmann density than
            the trained weights a draw is on average, to second order, while the encoder stands
            still; from samples that the covariance does not rest on.

    Example:
        >>> import torch, pyrocg
        >>> target = pyrocg.BoltzmannTarget(pyrocg.DoubleWell(), beta=1.0)
        >>> cg = pyrocg.CoarseGrainedModel.from_basins(
        ...     target, pyrocg.IdentityCoordinates(2), latent_dim=1, hidden=(8,)
        ... )
        >>> posterior = LaplacePosterior.fit(cg, n_samples=1e4, num_draws=32)
        >>> sorted(posterior.draw(2, seed=0)[0]) == sorted(posterior.names)
        True
    """

    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    mean: Tensor = field(repr=False)
    std: Tensor = field(repr=False)
    directions: Tensor = field(repr=False)
    shrinkage: Tensor = field(repr=False)
    gibbs_scale: float
    dtype: torch.dtype
    excess: float = math.nan
    prior_scale: float = math.nan

    @classmethod
    def fit(
        cls,
        model: CoarseGrainedModel,
        n_samples: float | None = None,
        *,
        gibbs_scale: float | None = None,
        structure: str = "low_rank",
        rank: int = 20,
        only: str | Sequence[str] = "*",
        weight_prior: WeightPrior | None = None,
        loss: ELBO | None = None,
        encoder_draws: int = 16,
        num_draws: int = 1000,
        seed: int = 0,
    ) -> LaplacePosterior:
        r"""Estimate the curvature from samples of the generator. The model is left as it was.

        The scale is derived from ``n_samples``, the number n of samples that the weights rest on:

        .. math:: N = n\, \frac{tr(F A)}{tr(F A C A)}, \qquad A = (F + \Lambda / n)^{-1}

        with C the covariance of the gradient of one sample. Weights trained on n samples have the
        sandwich covariance :math:`\tfrac1n A C A`, which is also that of the loss-likelihood
        bootstrap, and the Gibbs posterior has :math:`\tfrac1N A`. With this N a draw of the
        posterior is on average as many nats above the minimum of the divergence,
        :math:`tr(F\,Cov)/2`, as the trained weights are. Where C is proportional to F the two
        covariances are equal, and for a well-specified likelihood, C = F, N = n. Source: Lyddon,
        Holmes and Walker (2019), "General Bayesian updating and the loss-likelihood bootstrap".
        Their own match, of :math:`tr(F C^{-1} F)`, has no bound here: path gradients have
        directions without noise.

        ============================  ================================  ==========================
        loss                          gradient, encoder stands still    encoder is trained too
        ============================  ================================  ==========================
        ``Trace_ELBO``                p + s                             p + :math:`\bar s`
        ``PathGradientELBO``          p                                 p + :math:`\bar s` - s
        ============================  ================================  ==========================

        with p along u alone (the path), s the score of the decoder and :math:`\bar s` its mean
        over the encoder; the last column takes out what the encoder's own noise puts in.

        Args:
            model: trained.
            n_samples: n, the samples of the run; of a run with ``Trace_ELBO``, Adam and a cosine,
                which forgets its beginning, rather a third of them.
            gibbs_scale: N itself, in the place of ``n_samples``.
            structure: of F. "diagonal": correlations are left out. "low_rank": the leading
                directions and the diagonal of the rest. "full": all of it, for up to 3000 weights.
                "last_layer": full, over the last layers alone, see
                :func:`~pyrocg.networks.last_layers`.
            rank: number of directions of "low_rank".
            only: patterns of the names of the decoder's parameters that are random, as in a shell;
                not for "last_layer", which names them itself.
            weight_prior: the one trained with. By default a ``GaussianWeightPrior``, the widest of
                the scales 1, 0.3, 0.1, 0.03 and 0.01 whose draws stay where the divergence is a
                parabola: see :attr:`prior_scale`.
            loss: what the model was trained with, ``PathGradientELBO`` (default) or
                ``Trace_ELBO``; for N.
            encoder_draws: draws of z behind the marginal information; 0 where the encoder was not
                trained.
            num_draws: samples behind the estimates of F and C; those of C cost an energy call
                each, and with the default prior so do 2304 more; both for every scale tried.
            seed: of the random numbers; the global generators are left as they were.

        Raises:
            TypeError: another loss.
            ValueError: an argument is out of range, both or neither of ``n_samples`` and
                ``gibbs_scale`` are given, too many weights for a full covariance, weights that
                neither samples nor prior determine, or gradients without any noise.
        """
        if (n_samples is None) == (gibbs_scale is None):
            raise ValueError(
                "expected either n_samples, the samples that the model was trained on, or "
                f"gibbs_scale, got {n_samples} and {gibbs_scale}"
            )
        given: Any = n_samples if gibbs_scale is None else gibbs_scale
        if not 0 < given < math.inf:
            raise ValueError(f"expected n_samples or gibbs_scale above 0, got {given}")
        has_score(loss)  # or it is refused
        if structure == "last_layer":
            structure, only = "full", _only_last_layers(model.decoder, only)
        fisher = Fisher(model, only, encoder_draws, num_draws, seed)
        layout = Layout.of(fisher.parameters)
        information = estimate_information(fisher, structure, rank)

        def with_prior(weight_prior: WeightPrior, width: float = math.nan) -> LaplacePosterior:
            prior = _precision(model.decoder, weight_prior, layout)
            scale = float(given)
            if gibbs_scale is None:
                scale = _calibrated(fisher, information, scale, prior, loss)
            covariance = information.covariance(scale, prior)
            return cls(
                layout.names,
                layout.shapes,
                layout.flatten(fisher.parameters),
                covariance.std,
                covariance.directions,
                covariance.shrinkage,
                scale,
                next(iter(fisher.parameters.values())).dtype,
                _excess(replace(fisher, encoder_draws=0, seed=seed + 1), covariance),
                width,
            )

        if weight_prior is not None:
            return with_prior(weight_prior)
        for width in _WIDTHS:
            posterior = with_prior(GaussianWeightPrior(width), width)
            if width == _WIDTHS[-1] or _is_within_parabola(model, posterior, seed + 2):
                break
        return posterior

    def covariance(self) -> Tensor:
        """Return the covariance of the weights, shape ``(n_weights, n_weights)``.

        Raises:
            ValueError: there are too many weights for that.
        """
        check_full(len(self.mean))
        spread = Spread(self.std, self.directions, self.shrinkage)
        return spread.times(torch.eye(len(self.mean)).double())

    def _vector(self, generator: torch.Generator) -> Tensor:
        noise = torch.randn(len(self.mean), dtype=torch.float64, generator=generator)
        along = (self.shrinkage - 1) * (self.directions.T @ noise)
        return self.mean + self.std * (noise + self.directions @ along)


def _only_last_layers(decoder: nn.Module, only: str | Sequence[str]) -> tuple[str, ...]:
    if only != "*":
        raise ValueError(
            f'expected no `only` for "last_layer", which names its weights itself, got {only!r}; '
            'use "full"'
        )
    trained = trained_weights(decoder)
    return tuple(name for name in last_layers(decoder) if name in trained)


def _precision(decoder: nn.Module, weight_prior: WeightPrior, layout: Layout) -> Tensor:
    """Precision of the prior of the chosen parameters, one vector."""
    return layout.flatten(prior_precision(weight_prior, dict(decoder.named_parameters())))


def _calibrated(
    fisher: Fisher, information: Information, n: float, prior: Tensor, loss: ELBO | None
) -> float:
    """N, see :meth:`LaplacePosterior.fit`."""
    spread = information.covariance(n, prior)
    determined = len(prior) - float((prior * spread.variance()).sum())  # tr(F A)

    def square(rows: Tensor) -> Tensor:
        return information.square(n * spread.times(rows))

    noise = fisher.noise(square, loss)  # tr(A F A C)
    if not noise > 1e-9 * determined > 0:
        raise ValueError(
            f"expected gradients with noise, got {noise} of {determined} determined weights: the "
            "fit is perfect, so there is nothing to calibrate; give gibbs_scale"
        )
    return n * determined / noise


def _excess(fisher: Fisher, covariance: Spread) -> float:
    """Half the mean square of the scores in the metric of the covariance."""
    total = 0.0
    for rows in fisher.rows():
        score = rows.score.double()
        total += float((covariance.times(score) * score).sum())
    return 0.5 * total / fisher.num_draws


def _is_within_parabola(model: CoarseGrainedModel, posterior: LaplacePosterior, seed: int) -> bool:
    """Whether draws are hardly farther from the Boltzmann density than to second order."""

    def divergence(weights: dict[str, Tensor]) -> float:
        with seeded(seed, model.parameters()), with_state(model.decoder, weights):
            return -float(bound(model.sample(_PROBE_SAMPLES).joint_log_weights))

    with at_target(model, training_shares):
        trained = divergence({})
        found = torch.tensor([divergence(w) - trained for w in posterior.draw(_PROBES, seed)])
    limit = min(_MOST_EXCESS, max(2.0 * posterior.excess, _NEGLIGIBLE))
    return float(found.quantile(0.5)) <= limit
