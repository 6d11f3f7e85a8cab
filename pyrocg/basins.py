"""Basins of a target: where its mass is in reduced coordinates, found without data."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor
from tqdm.auto import tqdm

from pyrocg.coordinates import Coordinates
from pyrocg.distributions import wrap
from pyrocg.encoders import BasinPartition
from pyrocg.energies.abstract import CappedEnergy
from pyrocg.target import BoltzmannTarget

__all__ = ["Basins", "find_basins"]

Potential: TypeAlias = Callable[[Tensor], Tensor]
"""From u (n, n_coordinates) to nats (n,), differentiable."""

_FLATTEST = 0.05  # smallest curvature, in nats per squared unit of u, that a component may have
_CONVERGED = 0.01  # nats that the next Newton step promises below what is taken for a minimum


@dataclass(frozen=True)
class Basins:
    r"""A soft partition of the target into components, with their Laplace approximations.

    Component k is the part :math:`\pi(u)\, r(k|u)` of the target, r the partition around the
    centres. With :math:`V(u) = \beta U(T(u)) - \log|\partial T/\partial u|`, its potential is
    :math:`V_k(u) = V(u) - \log r(k|u)`.

    Attributes:
        u: the minimum of each :math:`V_k`, shape ``(n_basins, n_coordinates)``.
        value: :math:`V_k` there, in nats, shape ``(n_basins,)``.
        covariance: :math:`(\nabla^2 V_k)^{-1}` there, ``(n_basins, n_coordinates, n_coordinates)``.
        columns: the coordinates that tell components apart, shape ``(n_columns,)``.
        centres: centres of the partition in these columns, shape ``(n_basins, n_columns)``.
        concentration: of the partition, shape ``(n_columns,)``.
        n_minima: the first so many centres are minima of V, the others fill the gaps.
        energy_calls: configurations whose energy was evaluated for all this.
    """

    u: Tensor
    value: Tensor
    covariance: Tensor
    columns: Tensor
    centres: Tensor
    concentration: Tensor
    n_minima: int
    energy_calls: int

    def __len__(self) -> int:
        return len(self.u)

    @property
    def log_z(self) -> Tensor:
        r"""Laplace estimate of each component's log Z, shape ``(n_basins,)``.

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
        density is flat to 18 %.

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
    steps: int = 200,
    separation: float = 0.5,
    max_free_energy: float = 12.0,
    cover: float | None = 0.9,
    max_energy: float = 9.0,
    max_basins: int = 32,
    concentration: float = 12.0,
    seed: int = 0,
    progress: bool = False,
) -> Basins:
    r"""Find where the mass of a target is by minimising V from many starts. No data is needed.

    The starts fill the space of ``columns`` (a scrambled Sobol sequence: the circle where a
    column is circular, a normal distribution of standard deviation ``spread`` elsewhere), the other
    coordinates start at their reference. All are minimised together with Adam, on an energy capped
    against overlaps, merged, and polished with Newton steps: these minima are the first centres.
    With ``cover``, further centres fill the gaps between them: the starts are minimised again with
    their columns held fixed, and of those within ``max_energy`` of the lowest minimum the farthest
    from all centres becomes the next centre, until none is farther than ``cover``. So passes and
    flanks have components of their own too, trained with the same share of the samples.

    With more than three columns, or one that is not circular, there is no filling and the minima
    are the only centres (``n_minima`` is then their number): give the three ``columns`` that
    matter most to have them covered.

    Args:
        target: the density.
        coordinates: reduced coordinates of its configurations.
        columns: indices of the coordinates that tell basins apart; default
            :attr:`Coordinates.rotatable`, or every coordinate if there is none.
        starts: how many, or the starts themselves, shape ``(n_starts, n_coordinates)``.
        spread: of the starts in columns that are not circular.
        steps: Adam steps of each minimisation; each costs one energy call per start.
        separation: minima whose columns all agree within this (rad, or units of u) are one.
        max_free_energy: minima this many nats above the best by Laplace estimate are left out.
        cover: largest distance in rad of a populated point from a centre; None for minima alone.
            Used only if the columns are at most three and all circular.
        max_energy: a point is populated if V there is at most so many nats above the lowest.
        max_basins: at most so many minima, and centres in all; it warns of what that leaves out.
        concentration: of the partition in circular columns, see
            :class:`~pyrocg.encoders.BasinPartition`; in others one over the minima's mean variance.
        seed: of the starts; the global generator is left alone.
        progress: show a progress bar for each stage.

    Raises:
        ValueError: no minimum was found.
    """
    energy, circular = target.energy.exact, coordinates.circular
    calls = energy.calls
    if columns is None:
        columns = coordinates.rotatable
        if len(columns) == 0:
            columns = torch.arange(coordinates.n_coordinates, device=circular.device)
    if isinstance(starts, int):
        starts = _starts(coordinates, columns, starts, spread, seed)
    tamed, exact = _tamed(target, coordinates), _potential(target.exact, coordinates)
    relaxed = _descend(tamed, starts.double(), steps, _Bar("relaxing", progress))
    minima, covariances = _minima(
        exact,
        relaxed,
        columns,
        circular,
        separation,
        max_free_energy,
        max_basins,
        _Bar("minima", progress),
    )
    points = minima
    if cover is not None and len(columns) <= 3 and bool(circular[columns].all()):
        held = _descend(tamed, starts.double(), steps, _Bar("covering", progress), fixed=columns)
        populated = held[_values(exact, held) < _values(exact, minima).min() + max_energy]
        points = _fill(minima, populated, columns, cover, max_basins)
    width = covariances.diagonal(dim1=-2, dim2=-1)[:, columns].mean(0)
    kappa = torch.where(circular[columns], concentration, 1.0 / width)
    centres = points[:, columns]
    partition = BasinPartition(centres, columns, circular, kappa)
    parts = []
    for k, point in enumerate(_Bar("components", progress)(points)):
        component = _component(exact, partition, k)
        u, hessian = _newton(component, point)
        values, vectors = torch.linalg.eigh(hessian)
        covariance = (vectors / values.clamp(min=_FLATTEST)) @ vectors.mT
        u = torch.where(circular, wrap(u), u)
        parts.append((u, _values(component, u.unsqueeze(0))[0], covariance))
    minimum, value, covariance = (torch.stack(part) for part in zip(*parts, strict=True))
    return Basins(
        u=minimum,
        value=value,
        covariance=covariance,
        columns=columns,
        centres=centres,
        concentration=kappa,
        n_minima=len(minima),
        energy_calls=energy.calls - calls,
    )


@dataclass(frozen=True)
class _Bar:
    """A progress bar around the loop of a stage."""

    stage: str
    shown: bool

    def __call__(self, items: Iterable[Any]) -> Iterable[Any]:
        return tqdm(items, desc=f"basins, {self.stage}", disable=not self.shown)


def _starts(coordinates: Coordinates, columns: Tensor, n: int, spread: float, seed: int) -> Tensor:
    uniform = torch.quasirandom.SobolEngine(len(columns), scramble=True, seed=seed).draw(n).double()
    uniform = uniform.clamp(1e-6, 1 - 1e-6)
    normal = spread * math.sqrt(2.0) * torch.erfinv(2 * uniform - 1)
    angle = math.pi * (2 * uniform - 1)
    starts = coordinates.origin.double().cpu().repeat(n, 1)
    columns = columns.cpu()
    starts[:, columns] = torch.where(coordinates.circular.cpu()[columns], angle, normal)
    return starts.to(coordinates.origin.device)


def _potential(target: BoltzmannTarget, coordinates: Coordinates) -> Potential:
    def potential(u: Tensor) -> Tensor:
        x, log_abs_det = coordinates(u)
        return -target.log_prob(x) - log_abs_det

    return potential


def _tamed(target: BoltzmannTarget, coordinates: Coordinates) -> Potential:
    """V on an energy that is capped against overlaps, 1000 nats up."""
    cap = CappedEnergy(target.energy.exact, 1000.0 / target.beta, 100.0 / target.beta)
    return _potential(BoltzmannTarget(cap, beta=target.beta), coordinates)


def _component(potential: Potential, partition: BasinPartition, k: int) -> Potential:
    return lambda u: potential(u) - torch.log_softmax(partition(u).logits, -1)[..., k]


@torch.no_grad()
def _values(potential: Potential, u: Tensor) -> Tensor:
    return potential(u)


def _gradient(potential: Potential, u: Tensor) -> Tensor:
    u = u.detach().requires_grad_()
    return torch.autograd.grad(potential(u).sum(), u)[0]


def _descend(
    potential: Potential, u: Tensor, steps: int, bar: _Bar, fixed: Tensor | None = None
) -> Tensor:
    """Minimise from every start by Adam, whose steps do not depend on the force's size."""
    u = u.clone().requires_grad_()
    adam = torch.optim.Adam([u], lr=0.1, betas=(0.8, 0.95))
    rates = torch.optim.lr_scheduler.CosineAnnealingLR(adam, steps, eta_min=1e-3)
    for _ in bar(range(steps)):
        gradient = _gradient(potential, u).nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
        if fixed is not None:
            gradient[:, fixed] = 0.0
        u.grad = gradient
        adam.step()
        rates.step()
    return u.detach()


def _newton(potential: Potential, u: Tensor, max_steps: int = 12) -> tuple[Tensor, Tensor]:
    """Newton steps down to a minimum; returns the last point and the Hessian there."""
    for left in reversed(range(max_steps + 1)):
        hessian = _hessian(potential, u)
        if not bool(hessian.isfinite().all()):
            break
        values, vectors = torch.linalg.eigh(hessian)
        slopes = vectors.mT @ _gradient(potential, u.unsqueeze(0))[0]
        step = vectors @ (slopes / values.abs().clamp(min=_FLATTEST)).clamp(-0.5, 0.5)
        if left == 0 or float(step.abs().max()) < 1e-4:
            break
        u = u - step
    return u, hessian


def _hessian(potential: Potential, u: Tensor) -> Tensor:
    """Central differences of the gradient, all displacements in one batch."""
    step = 1e-4 * torch.eye(len(u), dtype=u.dtype, device=u.device)
    forward, backward = _gradient(potential, torch.cat([u + step, u - step])).chunk(2)
    hessian = (forward - backward) / 2e-4
    return 0.5 * (hessian + hessian.mT)


def _minima(
    potential: Potential,
    u: Tensor,
    columns: Tensor,
    circular: Tensor,
    separation: float,
    max_free_energy: float,
    max_basins: int,
    bar: _Bar,
) -> tuple[Tensor, Tensor]:
    """The distinct minima among relaxed starts, most populated first, and their covariances."""
    value = _values(potential, u)
    sorted_u = u[value.isfinite()][value[value.isfinite()].argsort()]
    found: list[tuple[Tensor, Tensor]] = []
    log_z: list[float] = []
    for candidate in bar(_distinct(sorted_u, columns, circular, separation)):
        minimum, hessian = _newton(potential, candidate)
        known = torch.stack([m for m, _ in found]) if found else minimum.new_zeros(0, len(minimum))
        if _is_minimum(potential, minimum, hessian):
            if bool(_near(minimum, known, columns, circular, separation).any()):
                continue
            minimum = torch.where(circular, wrap(minimum), minimum)
            found.append((minimum, torch.linalg.inv(hessian)))
            height = float(_values(potential, minimum.unsqueeze(0))[0])
            log_z.append(-height - 0.5 * float(torch.logdet(hessian)))
    if not found:
        raise ValueError(
            f"expected minima from {len(u)} starts, got none; give more steps or better starts"
        )
    order = torch.tensor(log_z).argsort(descending=True).tolist()
    order = [k for k in order if log_z[k] > max(log_z) - max_free_energy]
    if len(order) > max_basins:
        lost = max(log_z) - log_z[order[max_basins]]
        warnings.warn(
            f"{len(order) - max_basins} of {len(order)} minima were left out, the best of them "
            f"{lost:.1f} nats above the lowest: max_basins is {max_basins}; raise it, or lower "
            "max_free_energy",
            stacklevel=3,
        )
        order = order[:max_basins]
    return torch.stack([found[k][0] for k in order]), torch.stack([found[k][1] for k in order])


def _is_minimum(potential: Potential, u: Tensor, hessian: Tensor) -> bool:
    r"""Whether the Hessian is positive definite and the gradient g small, by what is left to gain.

    That is :math:`\tfrac12 g^\top H^{-1} g`, in nats whatever the units of u.
    """
    if not bool(hessian.isfinite().all()) or not float(torch.linalg.eigvalsh(hessian)[0]) > 0:
        return False
    gradient = _gradient(potential, u.unsqueeze(0))[0]
    return float(0.5 * gradient @ torch.linalg.solve(hessian, gradient)) < _CONVERGED


def _near(
    u: Tensor, others: Tensor, columns: Tensor, circular: Tensor, separation: float
) -> Tensor:
    """Which of others (m, n_coordinates) agree with u (n_coordinates) in all columns."""
    difference = torch.where(circular, wrap(u - others), u - others)[:, columns]
    return (difference.abs() < separation).all(-1)


def _distinct(u: Tensor, columns: Tensor, circular: Tensor, separation: float) -> Tensor:
    """The first of each group of agreeing rows."""
    kept = u[:1]
    for candidate in u[1:]:
        if not bool(_near(candidate, kept, columns, circular, separation).any()):
            kept = torch.cat([kept, candidate.unsqueeze(0)])
    return kept


def _fill(points: Tensor, candidates: Tensor, columns: Tensor, cover: float, most: int) -> Tensor:
    """Add the candidate farthest from all points, until none is farther than ``cover``."""
    while len(candidates):
        gaps = wrap(candidates[:, None, columns] - points[None, :, columns])
        distance = gaps.norm(dim=-1).min(dim=1).values
        if float(distance.max()) <= cover:
            break
        if len(points) >= most:
            warnings.warn(
                f"{int((distance > cover).sum())} of {len(candidates)} populated points are "
                f"farther than cover={cover:g} from all {len(points)} centres, up to "
                f"{float(distance.max()):.2f} rad: max_basins is {most}; raise it or cover, or "
                "lower max_energy",
                stacklevel=3,
            )
            break
        points = torch.cat([points, candidates[distance.argmax()].unsqueeze(0)])
    return points
