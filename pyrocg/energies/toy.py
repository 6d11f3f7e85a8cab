"""Toy potentials in units of kT (β = 1), with their exact answers to validate against."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from pyrocg.energies.abstract import Energy
from pyrocg.energies.quadrature import NEGLIGIBLE, log_integral, panels, reach

__all__ = ["DoubleWell", "GaussianMixture", "Harmonic", "ManyWell", "MuellerBrown", "ToyEnergy"]


class ToyEnergy(Energy):
    """A potential of ``dim`` real variables whose partition function is known.

    Args:
        dim: the number of variables.
    """

    def __init__(self, dim: int) -> None:
        if dim < 1:
            raise ValueError(f"expected dim >= 1, got {dim}")
        super().__init__((dim,))

    @property
    def dim(self) -> int:
        """Number of variables."""
        return self.event_shape[0]

    @abstractmethod
    def log_z(self, beta: float = 1.0, temper: float = 1.0) -> float:
        r"""Return :math:`\log \int \exp(-t \beta U(x))\, dx`, exact or by quadrature to 1e-8."""


class Harmonic(ToyEnergy):
    r"""A harmonic well, :math:`U(x) = \tfrac12 (x - m)^\top K (x - m)`.

    Args:
        dim: the number of variables d.
        stiffness: :math:`K`, a number, its diagonal ``(d,)`` or a positive-definite ``(d, d)``.
        mean: :math:`m`, a number or ``(d,)``.

    Example:
        >>> round(Harmonic(dim=2, stiffness=4.0).log_z(), 6)
        0.451583
    """

    stiffness: Tensor
    location: Tensor

    def __init__(
        self,
        dim: int,
        stiffness: float | Sequence[float] | Tensor = 1.0,
        mean: float | Sequence[float] | Tensor = 0.0,
    ) -> None:
        super().__init__(dim)
        matrix = torch.as_tensor(stiffness, dtype=torch.float64)
        if matrix.dim() < 2 and matrix.numel() in (1, dim):
            matrix = torch.diag(matrix.expand(dim))
        if matrix.shape != (dim, dim):
            raise ValueError(
                f"expected a stiffness of shape (), ({dim},) or ({dim}, {dim}), "
                f"got {tuple(matrix.shape)}"
            )
        _cholesky(matrix, "stiffness")
        self.register_buffer("stiffness", matrix.clone())
        location = torch.as_tensor(mean, dtype=torch.float64).expand(dim).clone()
        self.register_buffer("location", location)

    def _energy(self, x: Tensor) -> Tensor:
        offset = x - self.location.to(x)
        return 0.5 * (offset * (offset @ self.stiffness.to(x))).sum(-1)

    def log_z(self, beta: float = 1.0, temper: float = 1.0) -> float:
        log_det = float(torch.logdet(self.stiffness.double()))
        return 0.5 * self.dim * math.log(2 * math.pi / (beta * temper)) - 0.5 * log_det

    def mean(self) -> Tensor:
        """Return the mean ``(dim,)`` of the Boltzmann density at any temperature."""
        return self.location.clone()

    def sample(
        self,
        n: int,
        beta: float = 1.0,
        temper: float = 1.0,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Draw ``(n, dim)`` exact samples (float64)."""
        covariance = torch.linalg.inv(self.stiffness.double()) / (beta * temper)
        noise = torch.randn(n, self.dim, dtype=torch.float64, generator=generator)
        return self.location.double() + noise @ torch.linalg.cholesky(covariance).T


class GaussianMixture(ToyEnergy):
    r"""A normalised mixture, :math:`U(x) = -\log \sum_k w_k N(x; m_k, S_k)`, so log Z = 0.

    Args:
        means: :math:`m_k`, shape ``(n_components, dim)``.
        covariances: :math:`S_k`, a variance ``()``, one per component ``(n_components,)``,
            per component and variable ``(n_components, dim)``, or ``(n_components, dim, dim)``.
        weights: :math:`w_k > 0`, shape ``(n_components,)``, normalised here; default equal.

    Example:
        >>> import torch
        >>> mixture = GaussianMixture(means=[[-2.0, 0.0], [2.0, 0.0]], weights=[1.0, 3.0])
        >>> mixture.mean().tolist(), mixture.log_z()
        ([1.0, 0.0], 0.0)
    """

    means: Tensor
    weights: Tensor
    factors: Tensor
    whitening: Tensor

    def __init__(
        self,
        means: Sequence[Sequence[float]] | Tensor,
        covariances: float | Sequence[float] | Tensor = 1.0,
        weights: Sequence[float] | Tensor | None = None,
    ) -> None:
        centers = torch.as_tensor(means, dtype=torch.float64)
        if centers.dim() != 2 or centers.numel() == 0:
            raise ValueError(
                f"expected means of shape (n_components, dim), got {tuple(centers.shape)}"
            )
        super().__init__(centers.shape[1])
        given = torch.ones(len(centers)) if weights is None else weights
        shares = torch.as_tensor(given, dtype=torch.float64)
        if shares.shape != centers.shape[:1] or not bool((shares > 0).all()):
            raise ValueError(f"expected {len(centers)} positive weights, got {shares.tolist()}")
        matrices = _covariance_matrices(covariances, *centers.shape)
        self.register_buffer("means", centers.clone())
        self.register_buffer("weights", shares / shares.sum())
        self.register_buffer("factors", _cholesky(matrices, "covariances"))
        self.register_buffer("whitening", torch.linalg.inv(self.factors))

    def _energy(self, x: Tensor) -> Tensor:
        whitening = self.whitening.to(x)
        log_norm = torch.diagonal(whitening, dim1=-2, dim2=-1).log().sum(-1)
        log_norm = log_norm - 0.5 * self.dim * math.log(2 * math.pi)
        offset = x.unsqueeze(-2) - self.means.to(x)
        whitened = torch.einsum("kij,nkj->nki", whitening, offset)
        log_parts = self.weights.to(x).log() + log_norm - 0.5 * whitened.square().sum(-1)
        return -torch.logsumexp(log_parts, -1)

    def log_z(self, beta: float = 1.0, temper: float = 1.0) -> float:
        """Return log Z: 0 at tβ = 1, otherwise by quadrature in one or two dimensions.

        Raises:
            ValueError: tβ is not 1 in more than two dimensions, where no exact answer is known.
        """
        scale = beta * temper
        if scale == 1.0:
            return 0.0
        if self.dim > 2:
            raise ValueError(
                f"expected beta * temper = 1 in {self.dim} dimensions, got {scale}; "
                "a tempered mixture is integrated in one or two dimensions only"
            )
        widths = torch.linalg.svdvals(self.factors.double())
        margin = math.sqrt(2 * NEGLIGIBLE / min(scale, 1.0)) * float(widths.max())
        lower = float(self.means.min()) - margin
        upper = float(self.means.max()) + margin
        resolution = 2 * float(widths.min()) / math.sqrt(max(scale, 1.0))
        n_panels = min(max(math.ceil((upper - lower) / resolution), 20), 120)
        return log_integral(self._energy, self.dim, scale, lower, upper, n_panels)

    def mean(self) -> Tensor:
        """Return the mean ``(dim,)`` at tβ = 1."""
        return self.weights @ self.means

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """Draw ``(n, dim)`` exact samples at tβ = 1 (float64)."""
        k = torch.multinomial(self.weights.double(), n, replacement=True, generator=generator)
        noise = torch.randn(n, self.dim, dtype=torch.float64, generator=generator)
        return self.means.double()[k] + torch.einsum("nij,nj->ni", self.factors.double()[k], noise)


class DoubleWell(ToyEnergy):
    r"""The bimodal potential of arXiv:2002.10148,

    .. math:: U(x) = \tfrac{a}{4} x_1^4 - \tfrac{b}{2} x_1^2 + c x_1 + \tfrac{d}{2} x_2^2.

    Args:
        a: quartic coefficient, above 0.
        b: quadratic coefficient; above 0 it makes two wells near :math:`\pm\sqrt{b/a}`.
        c: tilt; 0 makes the wells equal.
        d: stiffness in :math:`x_2`, above 0.

    Example:
        >>> well = DoubleWell()
        >>> round(well.log_z(), 4), round(well.probability_above(0.167), 5)
        (12.0649, 0.00835)
    """

    def __init__(self, a: float = 1.0, b: float = 6.0, c: float = 1.0, d: float = 1.0) -> None:
        if not (a > 0 and d > 0):
            raise ValueError(f"expected a > 0 and d > 0 for a bounded potential, got {a=}, {d=}")
        super().__init__(2)
        self.a, self.b, self.c, self.d = float(a), float(b), float(c), float(d)

    def _energy(self, x: Tensor) -> Tensor:
        x1, x2 = x.unbind(-1)
        return ((self.a / 4 * x1 * x1 - self.b / 2) * x1 + self.c) * x1 + self.d / 2 * x2 * x2

    def _section(self, x1: Tensor) -> Tensor:
        """Energy along x1 at x2 = 0."""
        return self._energy(torch.stack([x1, torch.zeros_like(x1)], -1))

    def _density(self, scale: float, lower: float = -math.inf) -> tuple[Tensor, Tensor, float]:
        """Nodes along x1 above ``lower``, the density's weights on them, and their shift."""
        edge = reach(self._section, scale)
        x1, weight = panels(min(max(lower, -edge), edge), edge, 400)
        floor = float(self._section(panels(-edge, edge, 400)[0]).min())
        return x1, weight * torch.exp(-scale * (self._section(x1) - floor)), floor

    def log_z(self, beta: float = 1.0, temper: float = 1.0) -> float:
        scale = beta * temper
        _, weight, floor = self._density(scale)
        log_z1 = math.log(float(weight.sum())) - scale * floor
        return log_z1 + 0.5 * math.log(2 * math.pi / (scale * self.d))

    def mean(self, beta: float = 1.0, temper: float = 1.0) -> Tensor:
        """Return the mean ``(2,)`` by quadrature."""
        x1, weight, _ = self._density(beta * temper)
        return torch.stack([(x1 * weight).sum() / weight.sum(), torch.zeros_like(x1[0])])

    def std(self, beta: float = 1.0, temper: float = 1.0) -> Tensor:
        """Return the standard deviation ``(2,)`` by quadrature."""
        x1, weight, _ = self._density(beta * temper)
        mean = (x1 * weight).sum() / weight.sum()
        variance = ((x1 - mean).square() * weight).sum() / weight.sum()
        return torch.stack([variance, torch.ones_like(mean) / (beta * temper * self.d)]).sqrt()

    def probability_above(
        self, threshold: float = 0.167, beta: float = 1.0, temper: float = 1.0
    ) -> float:
        """Return P(x1 > threshold); the default separates the two wells of the paper."""
        _, total, _ = self._density(beta * temper)
        _, above, _ = self._density(beta * temper, threshold)
        return float(above.sum() / total.sum())

    def sample(
        self,
        n: int,
        beta: float = 1.0,
        temper: float = 1.0,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Draw ``(n, 2)`` samples (float64), x1 by inverting its tabulated distribution."""
        scale = beta * temper
        edge = reach(self._section, scale)
        grid = torch.linspace(-edge, edge, 100_001, dtype=torch.float64)
        energy = self._section(grid)
        density = torch.exp(-scale * (energy - energy.min()))
        cdf = torch.cumulative_trapezoid(density)
        cdf = torch.cat([cdf.new_zeros(1), cdf]) / cdf[-1]
        uniform = torch.rand(n, dtype=torch.float64, generator=generator)
        x1 = torch.from_numpy(np.interp(uniform.numpy(), cdf.numpy(), grid.numpy()))
        x2 = torch.randn(n, dtype=torch.float64, generator=generator) / math.sqrt(scale * self.d)
        return torch.stack([x1, x2], -1)


class ManyWell(ToyEnergy):
    r"""Independent 2-D double wells, the many-well problem of FAB (arXiv:2208.01893),

    .. math:: U(x) = \sum_{i=1}^{d/2} x_{2i-1}^4 - 6 x_{2i-1}^2 - \tfrac12 x_{2i-1}
              + \tfrac12 x_{2i}^2,

    with :math:`2^{d/2}` modes.

    Args:
        dim: the number of variables d, even.

    Example:
        >>> round(ManyWell(dim=32).log_z(), 4)
        164.6957
    """

    def __init__(self, dim: int = 32) -> None:
        if dim < 2 or dim % 2:
            raise ValueError(f"expected an even dim of at least 2, got {dim}")
        super().__init__(dim)
        self.well = DoubleWell(a=4.0, b=12.0, c=-0.5, d=1.0)

    def _energy(self, x: Tensor) -> Tensor:
        return self.well._energy(x.unflatten(-1, (-1, 2))).sum(-1)

    def log_z(self, beta: float = 1.0, temper: float = 1.0) -> float:
        return self.dim // 2 * self.well.log_z(beta, temper)

    def mean(self, beta: float = 1.0, temper: float = 1.0) -> Tensor:
        """Return the mean ``(dim,)`` by quadrature."""
        return self.well.mean(beta, temper).repeat(self.dim // 2)

    def sample(
        self,
        n: int,
        beta: float = 1.0,
        temper: float = 1.0,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Draw ``(n, dim)`` samples (float64), the wells independently."""
        return self.well.sample(n * self.dim // 2, beta, temper, generator).reshape(n, self.dim)


class MuellerBrown(ToyEnergy):
    r"""The Müller-Brown surface (Theor. Chim. Acta 53, 75, 1979), three minima in two dimensions,

    .. math:: U(x) = s \sum_{k=1}^4 A_k \exp\!\left(a_k \Delta_1^2 + b_k \Delta_1 \Delta_2
              + c_k \Delta_2^2\right), \quad \Delta = x - x^{(k)}.

    Args:
        scale: :math:`s`; at 0.1 the minima are -14.7, -10.8 and -8.1, the higher barrier -4.1.

    Example:
        >>> import torch
        >>> round(MuellerBrown()(torch.tensor([-0.5582, 1.4417])).item(), 3)
        -14.67
    """

    terms: Tensor

    def __init__(self, scale: float = 0.1) -> None:
        if not scale > 0:
            raise ValueError(f"expected scale > 0, got {scale}")
        super().__init__(2)
        self.scale = float(scale)
        terms = [  # A, a, b, c, x1, x2
            [-200.0, -1.0, 0.0, -10.0, 1.0, 0.0],
            [-100.0, -1.0, 0.0, -10.0, 0.0, 0.5],
            [-170.0, -6.5, 11.0, -6.5, -0.5, 1.5],
            [15.0, 0.7, 0.6, 0.7, -1.0, 1.0],
        ]
        self.register_buffer("terms", torch.tensor(terms, dtype=torch.float64))

    def _energy(self, x: Tensor) -> Tensor:
        height, a, b, c, x1, x2 = self.terms.to(x).unbind(-1)
        d1, d2 = x[..., :1] - x1, x[..., 1:] - x2
        return self.scale * (height * torch.exp(a * d1 * d1 + b * d1 * d2 + c * d2 * d2)).sum(-1)

    def log_z(self, beta: float = 1.0, temper: float = 1.0) -> float:
        scale = beta * temper

        def least(r: Tensor) -> Tensor:  # the lower of the two growing directions, (1, -1)
            return self._energy(torch.stack([r - 1.0, 1.0 - r], -1))

        edge = reach(least, scale)
        return log_integral(self._energy, 2, scale, -edge - 1.0, edge + 1.0, 120)


def _cholesky(matrices: Tensor, name: str) -> Tensor:
    symmetric = torch.allclose(matrices, matrices.mT)
    factor, info = torch.linalg.cholesky_ex(matrices)
    if not symmetric or bool(info.any()) or not bool(torch.isfinite(factor).all()):
        raise ValueError(f"expected {name} that are symmetric and positive definite")
    return factor


def _covariance_matrices(
    covariances: float | Sequence[float] | Tensor, n_components: int, dim: int
) -> Tensor:
    given = torch.as_tensor(covariances, dtype=torch.float64)
    if given.shape == (n_components, dim, dim):
        return given
    if given.shape in ((), (n_components,)):
        given = given.reshape(-1, 1).expand(n_components, dim)
    if given.shape != (n_components, dim):
        raise ValueError(
            f"expected covariances of shape (), ({n_components},), ({n_components}, {dim}) or "
            f"({n_components}, {dim}, {dim}), got {tuple(given.shape)}"
        )
    return torch.diag_embed(given)
