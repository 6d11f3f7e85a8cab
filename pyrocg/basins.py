"""Basins of a target: minima in reduced coordinates, with their Laplace approximations."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from pyrocg.coordinates import Coordinates
from pyrocg.distributions import wrap
from pyrocg.energies.abstract import CappedEnergy
from pyrocg.target import BoltzmannTarget

__all__ = ["Basins", "find_basins"]


@dataclass(frozen=True)
class Basins:
    r"""Minima of :math:`V(u) = \beta U(T(u)) - \log|\partial T/\partial u|` and their curvature.

    Attributes:
        u: minima, shape ``(n_basins, n_coordinates)``, most populated first.
        value: V there, in nats, shape ``(n_basins,)``.
        covariance: :math:`(\nabla^2 V)^{-1}`, shape ``(n_basins, n_coordinates, n_coordinates)``.
        columns: the coordinates that tell basins apart, shape ``(n_columns,)``.
        energy_calls: configurations whose energy was evaluated for it.
    """

    u: Tensor
    value: Tensor
    covariance: Tensor
    columns: Tensor
    energy_calls: int

    def __len__(self) -> int:
        return len(self.u)

    @property
    def log_z(self) -> Tensor:
        r"""Laplace estimate of each basin's log Z, shape ``(n_basins,)``.

        .. math:: -V_k + \tfrac12 \log\det(2\pi \Sigma_k)
        """
        n = self.u.shape[-1]
        return 0.5 * (n * math.log(2 * math.pi) + torch.logdet(self.covariance)) - self.value

    def linear_gaussian(
        self, latent_dim: int, circular: Tensor, share: float
    ) -> tuple[Tensor, Tensor]:
        r"""Split each covariance into what z explains and the rest, :math:`\Sigma = W^T W + R`.

        The leading ``latent_dim`` principal axes of the covariance of :attr:`columns` get the
        fraction ``share`` of their variance from z; the other coordinates follow by regression.
        Standard deviations of circular coordinates are bounded by 2.2 rad, where a wrapped normal
        density is flat to 10 %.

        Args:
            latent_dim: dimension of z.
            circular: which coordinates are circular, shape ``(n_coordinates,)``.
            share: in (0, 1).

        Returns:
            W, shape ``(n_basins, latent_dim, n_coordinates)``, and R, shape
            ``(n_basins, n_coordinates, n_coordinates)``.
        """
        if not 0 < share < 1:
            raise ValueError(f"expected a share in (0, 1), got {share}")
        scale = self.covariance.diagonal(dim1=-2, dim2=-1).sqrt()
        shrink = torch.where(circular, (2.2 / scale).clamp(max=1.0), torch.ones_like(scale))
        covariance = shrink[:, :, None] * self.covariance * shrink[:, None, :]
        rows = covariance[:, self.columns]
        values, vectors = torch.linalg.eigh(rows[:, :, self.columns])
        n = min(latent_dim, len(self.columns))
        top = (share / values[:, -n:].flip(-1)).sqrt().unsqueeze(1) * vectors[:, :, -n:].flip(-1)
        loadings = self.covariance.new_zeros(len(self), latent_dim, len(circular))
        loadings[:, :n] = top.mT @ rows
        return loadings, covariance - loadings.mT @ loadings


def find_basins(
    target: BoltzmannTarget,
    coordinates: Coordinates,
    columns: Tensor | None = None,
    *,
    starts: Tensor | int = 128,
    spread: float = 3.0,
    steps: int = 400,
    min_separation: float = 0.5,
    max_free_energy: float = 12.0,
    max_basins: int = 12,
    seed: int = 0,
) -> Basins:
    r"""Find the basins of a target by minimising V from many starts. No data is needed.

    The starts fill the space of ``columns`` (a scrambled Sobol sequence: the circle where a
    column is circular, a normal distribution of standard deviation ``spread`` elsewhere), the other
    coordinates start at their reference. All are minimised together with Adam, on an energy capped
    against overlaps, merged, polished with Newton steps, and ranked by the Laplace estimate of their
    log Z.

    Args:
        target: the density.
        coordinates: reduced coordinates of its configurations.
        columns: indices of the coordinates that tell basins apart; default
            :attr:`Coordinates.rotatable`, or every coordinate if there is none.
        starts: how many, or the starts themselves, shape ``(n_starts, n_coordinates)``.
        spread: of the starts in columns that are not circular.
        steps: Adam steps; each costs one energy call per start.
        min_separation: minima whose columns all agree within this (rad, or units of u) are one.
        max_free_energy: basins this many nats above the best by Laplace estimate are left out.
        max_basins: the most populated so many are kept.
        seed: of the starts; the global generator is left alone.

    Raises:
        ValueError: no minimum was found.
    """
    energy = target.energy.exact
    calls = energy.calls
    if columns is None:
        columns = coordinates.rotatable
        if len(columns) == 0:
            columns = torch.arange(coordinates.n_coordinates)
    if isinstance(starts, int):
        starts = _starts(coordinates, columns, starts, spread, seed)
    exact = target.exact
    u = _descend(exact, coordinates, starts.double(), steps)
    value = _potential(exact, coordinates, u)
    u = u[value.isfinite()][value[value.isfinite()].argsort()]
    found: list[tuple[Tensor, Tensor, Tensor]] = []
    for candidate in _distinct(u, columns, coordinates.circular, min_separation):
        polished = _polish(exact, coordinates, candidate)
        if polished is not None and not any(
            _same(polished[0], other[0], columns, coordinates.circular, min_separation)
            for other in found
        ):
            found.append(polished)
    if not found:
        raise ValueError(
            f"expected minima from {len(starts)} starts, got none; give more steps or better starts"
        )
    basins = Basins(
        *(torch.stack(part) for part in zip(*found, strict=True)), columns, energy.calls - calls
    )
    order = basins.log_z.argsort(descending=True)[:max_basins]
    order = order[basins.log_z[order] > basins.log_z.max() - max_free_energy]
    return Basins(
        basins.u[order], basins.value[order], basins.covariance[order], columns, basins.energy_calls
    )


def _starts(
    coordinates: Coordinates, columns: Tensor, n: int, spread: float, seed: int
) -> Tensor:
    uniform = torch.quasirandom.SobolEngine(len(columns), scramble=True, seed=seed).draw(n).double()
    uniform = uniform.clamp(1e-6, 1 - 1e-6)
    normal = spread * math.sqrt(2.0) * torch.erfinv(2 * uniform - 1)
    angle = math.pi * (2 * uniform - 1)
    starts = coordinates.origin.double().cpu().repeat(n, 1)
    columns = columns.cpu()
    starts[:, columns] = torch.where(coordinates.circular.cpu()[columns], angle, normal)
    return starts.to(coordinates.origin.device)


def _potential(target: BoltzmannTarget, coordinates: Coordinates, u: Tensor) -> Tensor:
    with torch.no_grad():
        x, log_abs_det = coordinates(u)
        return -target.log_prob(x) - log_abs_det


def _gradient(target: BoltzmannTarget, coordinates: Coordinates, u: Tensor) -> Tensor:
    u = u.detach().requires_grad_()
    x, log_abs_det = coordinates(u)
    return torch.autograd.grad((-target.log_prob(x) - log_abs_det).sum(), u)[0]


def _descend(target: BoltzmannTarget, coordinates: Coordinates, u: Tensor, steps: int) -> Tensor:
    """Minimise V from every start by Adam, whose steps do not depend on the force's size."""
    cap = CappedEnergy(target.energy, cap=1000.0 / target.beta, softness=100.0 / target.beta)
    capped = BoltzmannTarget(cap, beta=target.beta)
    u = u.clone().requires_grad_()
    adam = torch.optim.Adam([u], lr=0.1, betas=(0.8, 0.95))
    rates = torch.optim.lr_scheduler.CosineAnnealingLR(adam, steps, eta_min=1e-3)
    for _ in range(steps):
        gradient = _gradient(capped, coordinates, u)
        u.grad = gradient.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
        adam.step()
        rates.step()
    return u.detach()


def _difference(a: Tensor, b: Tensor, circular: Tensor) -> Tensor:
    return torch.where(circular, wrap(a - b), a - b)


def _same(a: Tensor, b: Tensor, columns: Tensor, circular: Tensor, separation: float) -> bool:
    difference = _difference(a, b, circular)[columns]
    return bool((difference.abs() < separation).all())


def _distinct(u: Tensor, columns: Tensor, circular: Tensor, separation: float) -> list[Tensor]:
    """The lowest of each group of minima; u is sorted."""
    kept: list[Tensor] = []
    for candidate in u:
        if not any(_same(candidate, other, columns, circular, separation) for other in kept):
            kept.append(candidate)
    return kept


def _polish(
    target: BoltzmannTarget, coordinates: Coordinates, u: Tensor, max_steps: int = 8
) -> tuple[Tensor, Tensor, Tensor] | None:
    """Newton steps on V; returns minimum, value and covariance, or None if it is a saddle."""
    for _ in range(max_steps):
        hessian = _hessian(target, coordinates, u)
        gradient = _gradient(target, coordinates, u.unsqueeze(0))[0]
        values, vectors = torch.linalg.eigh(hessian)
        if not bool(values.isfinite().all()):
            return None
        slopes = vectors.T @ gradient
        step = vectors @ (slopes / values.abs().clamp(min=0.05)).clamp(-1.0, 1.0)
        if float(step.abs().max()) < 1e-4:
            break
        u = u - step
    if float(values[0]) <= 0:
        return None
    covariance = (vectors / values) @ vectors.T
    value = _potential(target, coordinates, u.unsqueeze(0))[0]
    return torch.where(coordinates.circular, wrap(u), u), value, covariance


def _hessian(target: BoltzmannTarget, coordinates: Coordinates, u: Tensor) -> Tensor:
    """Central differences of the gradient, all displacements in one batch."""
    step = 1e-4 * torch.eye(len(u), dtype=u.dtype, device=u.device)
    gradients = _gradient(target, coordinates, torch.cat([u + step, u - step]))
    forward, backward = gradients.chunk(2)
    hessian = (forward - backward) / 2e-4
    return 0.5 * (hessian + hessian.T)
