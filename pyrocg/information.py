"""Fisher information of many weights in a form that can be held, and its inverse."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from pyrocg.curvature import Fisher

__all__ = [
    "FullInformation",
    "Information",
    "LowRankInformation",
    "Spread",
    "check_full",
    "estimate_information",
]

_OVERSAMPLING = 10  # extra directions of the randomised eigenvalues
_LEAST_REST = 1e-2  # of the diagonal, where the leading directions have all of it
_MOST_FULL = 3000  # weights of a full covariance, 72 MB


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


Information: TypeAlias = LowRankInformation | FullInformation


def estimate_information(fisher: Fisher, structure: str, rank: int) -> Information:
    """Estimate the information in one of its forms; see :meth:`LaplacePosterior.fit`.

    Args:
        fisher: what is estimated, from samples.
        structure: "diagonal", "low_rank" or "full".
        rank: number of directions of "low_rank".

    Raises:
        ValueError: the structure is another word, the rank is below 1, or there are too many
            weights for a full matrix.
    """
    n = sum(p.numel() for p in fisher.parameters.values())
    if structure == "full":
        check_full(n)
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


def _check_determined(precision: Tensor) -> None:
    unknown = int((precision <= 0).sum())
    if unknown:
        raise ValueError(
            f"expected weights that samples or prior determine, got {unknown} directions without "
            "any effect under a flat prior; give a weight_prior, or leave weights out by `only`"
        )


def check_full(n: int) -> None:
    """Refuse a full matrix of too many weights."""
    if n > _MOST_FULL:
        raise ValueError(
            f"expected at most {_MOST_FULL} weights for a full covariance, got {n}; "
            'use "low_rank", or name fewer weights by `only`'
        )
