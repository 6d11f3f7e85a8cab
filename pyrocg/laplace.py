"""The Laplace approximation of the Gibbs posterior over the decoder's weights, and its scale."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from pyro.infer import ELBO
from torch import Tensor, nn

from pyrocg.cgmodel import CoarseGrainedModel
from pyrocg.curvature import Fisher, has_score
from pyrocg.networks import last_layers
from pyrocg.weight_draws import Layout, VectorPosterior, trained_weights
from pyrocg.weight_priors import GaussianWeightPrior, WeightPrior, prior_precision

__all__ = ["LaplacePosterior"]

_OVERSAMPLING = 10  # extra directions of the randomised eigenvalues
_LEAST_REST = 1e-2  # of the diagonal, where the leading directions have all of it
_MOST_FULL = 3000  # weights of a full covariance, 72 MB


@dataclass(frozen=True)
class LaplacePosterior(VectorPosterior):
    r"""The Laplace approximation of the Gibbs posterior, a normal density at the trained weights,

    .. math:: \theta \sim N\big(\hat\theta,\; (\Lambda + N F)^{-1}\big)

    with Λ the precision of the weight prior, N the Gibbs scale and F the curvature of the KL
    divergence, see :mod:`pyrocg.curvature`. Draws are

    .. math:: \theta = \hat\theta + S\,\big(\epsilon + Q\,(c - 1)\,Q^\top \epsilon\big), \quad
              \epsilon \sim N(0, I),

    with S diagonal, Q orthonormal columns and c in (0, 1]. Source: MacKay (1992), "A practical
    Bayesian framework for backpropagation networks"; Daxberger and others (2021), "Laplace
    redux"; Halko, Martinsson and Tropp (2011) for the randomised eigenvectors.

    Attributes:
        names: of the decoder's parameters that are random; the others stay as trained.
        shapes: of these parameters.
        mean: :math:`\hat\theta`, shape ``(n_weights,)``, float64.
        std: the diagonal of S, shape ``(n_weights,)``.
        directions: Q, shape ``(n_weights, rank)``.
        shrinkage: c, shape ``(rank,)``.
        gibbs_scale: N.
        dtype: of the draws.

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
            weight_prior: the one trained with; default ``GaussianWeightPrior(1.0)``.
            loss: what the model was trained with, ``PathGradientELBO`` (default) or
                ``Trace_ELBO``; for N.
            encoder_draws: draws of z behind the marginal information; 0 where the encoder was not
                trained.
            num_draws: samples behind the estimates of F and C; those of C cost an energy call each.
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
        prior = _precision(model.decoder, weight_prior or GaussianWeightPrior(), layout)
        information = _information(fisher, structure, rank)
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
        )

    def covariance(self) -> Tensor:
        """Return the covariance of the weights, shape ``(n_weights, n_weights)``.

        Raises:
            ValueError: there are too many weights for that.
        """
        _check_full(len(self.mean))
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


@dataclass(frozen=True)
class Spread:
    r"""A covariance matrix in factors, :math:`S (I + Q (c^2 - 1) Q^\top) S`."""

    std: Tensor
    directions: Tensor
    shrinkage: Tensor

    def times(self, rows: Tensor) -> Tensor:
        """Multiply every row, shape ``(n, n_weights)``."""
        std, q = self.std.to(rows), self.directions.to(rows)
        along = (rows * std) @ q * (self.shrinkage.to(rows).square() - 1)
        return (rows * std + along @ q.T) * std

    def variance(self) -> Tensor:
        """The diagonal."""
        inner = self.directions.square() @ (self.shrinkage.square() - 1)
        return self.std.square() * (1 + inner)


@dataclass(frozen=True)
class LowRankInformation:
    r"""Fisher information as :math:`diag(d) + B B^\top`."""

    rest: Tensor
    factor: Tensor

    def square(self, rows: Tensor) -> Tensor:
        """Length of every row in this metric, squared."""
        along = (rows @ self.factor.to(rows)).square().sum(-1)
        return rows.square() @ self.rest.to(rows) + along

    def covariance(self, scale: float, prior: Tensor) -> Spread:
        """Invert the prior's precision plus N times this."""
        precision = prior + scale * self.rest
        _check_determined(precision)
        std = precision.rsqrt()
        whitened = math.sqrt(scale) * std[:, None] * self.factor
        directions, singular, _ = torch.linalg.svd(whitened, full_matrices=False)
        return Spread(std, directions, (1.0 + singular.square()).rsqrt())


@dataclass(frozen=True)
class FullInformation:
    """Fisher information as a matrix."""

    matrix: Tensor

    def square(self, rows: Tensor) -> Tensor:
        """Length of every row in this metric, squared."""
        return ((rows @ self.matrix.to(rows)) * rows).sum(-1)

    def covariance(self, scale: float, prior: Tensor) -> Spread:
        """Invert the prior's precision plus N times this."""
        precision = scale * self.matrix
        precision.diagonal().add_(prior)
        diagonal = precision.diagonal().clone()
        _check_determined(diagonal)
        std = diagonal.rsqrt()
        values, vectors = torch.linalg.eigh(std[:, None] * precision * std)
        _check_determined((values - 1e-12).clamp(min=0.0))
        return Spread(std, vectors, values.rsqrt())


Information = LowRankInformation | FullInformation


def _information(fisher: Fisher, structure: str, rank: int) -> LowRankInformation | FullInformation:
    n = sum(p.numel() for p in fisher.parameters.values())
    if structure == "full":
        _check_full(n)
        return _full(fisher, n)
    if structure == "diagonal":
        return LowRankInformation(fisher.diagonal().cpu(), torch.zeros(n, 0).double())
    if structure == "low_rank":
        if rank < 1:
            raise ValueError(f"expected a rank of at least 1, got {rank}")
        return _low_rank(fisher, min(n, rank), min(n, rank + _OVERSAMPLING))
    raise ValueError(
        f'expected a structure "diagonal", "low_rank", "full" or "last_layer", got {structure!r}'
    )


def _full(fisher: Fisher, n: int) -> FullInformation:
    """All of F, without the negative eigenvalues that noise gives to its estimate."""
    matrix = _times(fisher, torch.eye(n).double())
    root = matrix.diagonal().clamp(min=0.0).sqrt()
    inverse = torch.where(root > 0, 1.0 / root, 0.0)
    values, vectors = torch.linalg.eigh(0.5 * inverse[:, None] * (matrix + matrix.T) * inverse)
    vectors = root[:, None] * vectors
    return FullInformation((vectors * values.clamp(min=0.0)) @ vectors.T)


def _low_rank(fisher: Fisher, rank: int, oversampled: int) -> LowRankInformation:
    """The leading directions of F, in coordinates where its diagonal is 1, and a diagonal.

    A randomised eigenvalue problem with one step of subspace iteration. The directions carry what
    their eigenvalues have above the mean of the others: where all are alike they carry nothing.
    """
    diagonal = fisher.diagonal().cpu()
    root = diagonal.sqrt()
    inverse = torch.where(root > 0, 1.0 / root, 0.0)[:, None]
    generator = torch.Generator().manual_seed(fisher.seed)
    start = torch.randn(len(root), oversampled, dtype=torch.float64, generator=generator)
    basis = torch.linalg.qr(inverse * _times(fisher, inverse * start)).Q
    projected = basis.T @ (inverse * _times(fisher, inverse * basis))
    values, vectors = torch.linalg.eigh(0.5 * (projected + projected.T))
    values, vectors = values.flip(0)[:rank], (basis @ vectors).flip(1)[:, :rank]
    total = float((root > 0).sum())  # of all eigenvalues
    bulk = max(total - float(values.sum()), 0.0) / max(total - rank, 1.0)
    factor = root[:, None] * vectors * (values - bulk).clamp(min=0.0).sqrt()
    rest = (diagonal - factor.square().sum(1)).clamp(min=0.0)
    return LowRankInformation(torch.maximum(rest, _LEAST_REST * diagonal), factor)


def _times(fisher: Fisher, matrix: Tensor) -> Tensor:
    device = next(iter(fisher.parameters.values())).device
    return fisher.times(matrix.to(device)).cpu()


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


def _check_determined(precision: Tensor) -> None:
    unknown = int((precision <= 0).sum())
    if unknown:
        raise ValueError(
            f"expected weights that samples or prior determine, got {unknown} directions without "
            "any effect under a flat prior; give a weight_prior, or leave weights out by `only`"
        )


def _check_full(n: int) -> None:
    if n > _MOST_FULL:
        raise ValueError(
            f"expected at most {_MOST_FULL} weights for a full covariance, got {n}; "
            'use "low_rank", or name fewer weights by `only`'
        )
