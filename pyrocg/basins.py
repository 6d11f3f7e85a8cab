"""Basins of a target: where its mass is in reduced coordinates, found without data."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

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
_FEW_COLUMNS = 3  # so many can be filled by starts
_SMALL_RISE = 1e-3  # of log Z, with which the search ends
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
    max_basins: int = 256,
    concentration: float = 12.0,
    seed: int = 0,
    progress: bool = False,
) -> Basins:
    r"""Find where the mass of a target is by minimising V from many starts. No data is needed.

    The starts fill the space of ``columns`` (a scrambled Sobol sequence: the circle where a
    column is circular, a normal distribution of standard deviation ``spread`` elsewhere), the other
    coordinates start at their reference. All are minimised together with Adam, on an energy capped
    against overlaps, merged, and polished with Newton steps: these minima are the first centres.

    With up to three columns, all circular, and ``cover``, further centres fill the gaps between
    them: the starts are minimised again with their columns held fixed, and of those within
    ``max_energy`` of the lowest minimum the farthest from all centres becomes the next centre,
    until none is farther than ``cover``. So passes and flanks have components of their own too,
    trained with the same share of the samples.

    With more columns the starts cannot fill the space. Minima are recombined in its place: each
    further start takes every column from one of two minima, which are drawn by the square roots of
    their weights. Rounds of as many starts follow each other until one raises the log Z of all
    minima, by Laplace estimate, by less than 0.001. With ``cover`` and circular columns their
    flanks become centres too: points in which one column of a minimum is turned anywhere,
    minimised with all columns held fixed. Their weight is that of the minimum times
    :math:`e^{-\Delta V}`; the heaviest first, those farther than ``cover`` from all centres are
    added. Of all centres the ``max_basins`` heaviest stay.

    Args:
        target: the density.
        coordinates: reduced coordinates of its configurations.
        columns: indices of the coordinates that tell basins apart; default
            :attr:`Coordinates.rotatable`, or every coordinate if there is none.
        starts: how many in each round, or those of the first round, shape
            ``(n_starts, n_coordinates)``.
        spread: of the starts in columns that are not circular.
        steps: Adam steps of each minimisation; each costs one energy call per start.
        separation: minima whose columns all agree within this (rad, or units of u) are one.
        max_free_energy: minima this many nats above the best by Laplace estimate are left out.
        cover: largest distance in rad of a populated point from a centre; None for minima alone.
            Used only if the columns are all circular.
        max_energy: a point is populated if V there is at most so many nats above the lowest; a
            flank if it is at most so many nats lighter than the heaviest minimum.
        max_basins: at most so many minima, and centres in all; it warns of what that leaves out.
        concentration: of the partition in circular columns, see
            :class:`~pyrocg.encoders.BasinPartition`; in others one over the minima's mean variance.
        seed: of the starts; the global generator is left alone.
        progress: show a progress bar for each stage.

    Raises:
        ValueError: no minimum was found.
    """
    calls, columns = target.energy.exact.calls, _columns(coordinates, columns)
    if isinstance(starts, int):
        starts = _starts(coordinates, columns, starts, spread, seed)
    starts = starts.double()
    search = _Search(target, coordinates, columns, separation, steps, progress)
    search.from_starts(starts)
    few, all_circular = len(columns) <= _FEW_COLUMNS, bool(coordinates.circular[columns].all())
    if not few:
        search.recombine(len(starts), seed)
    minima = search.best(max_free_energy)
    flanks = _Points(minima.u[:0], minima.log_z[:0])
    if not few and cover is not None and all_circular:
        flanks = search.flanks(minima, 8 * len(starts), cover, max_energy, seed)
    minima, flanks = _heaviest(minima, flanks, max_basins)
    points = torch.cat([minima.u, flanks.u])
    if few and cover is not None and all_circular:
        points = search.fill(minima.u, starts, cover, max_energy, max_basins)
    partition = search.partition(points, minima.u, concentration)
    if len(flanks.u):
        points = search.settle(points, partition)
    return search.components(points, partition, len(minima.u), calls)


def _columns(coordinates: Coordinates, columns: Tensor | None) -> Tensor:
    columns = coordinates.rotatable if columns is None else columns
    if len(columns) == 0:
        return torch.arange(coordinates.n_coordinates, device=coordinates.circular.device)
    return columns


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


class _Points(NamedTuple):
    """Points (n, n_coordinates) with the log weight of each."""

    u: Tensor
    log_z: Tensor


class _Search:
    """The distinct minima of a target that are known so far, and what is made of them."""

    def __init__(
        self,
        target: BoltzmannTarget,
        coordinates: Coordinates,
        columns: Tensor,
        separation: float,
        steps: int,
        progress: bool,
    ) -> None:
        self.energy = target.energy.exact
        self.tamed = _tamed(target, coordinates)
        self.exact = _potential(target.exact, coordinates)
        self.columns, self.circular = columns, coordinates.circular
        self.separation, self.steps, self.progress = separation, steps, progress
        self.u: list[Tensor] = []
        self.log_z: list[Tensor] = []
        self.n_starts = 0

    def from_starts(self, starts: Tensor) -> None:
        """Minimise from every start and add the minima that are new."""
        self.n_starts += len(starts)
        u = _descend(self.tamed, starts, self.steps, _Bar("relaxing", self.progress))
        value = _values(self.exact, u)
        sorted_u = u[value.isfinite()][value[value.isfinite()].argsort()]
        for candidate in _Bar("minima", self.progress)(self._new(sorted_u)):
            minimum, hessian = _newton(self.exact, candidate)
            if _is_minimum(self.exact, minimum, hessian) and len(self._new(minimum.unsqueeze(0))):
                self.u.append(torch.where(self.circular, wrap(minimum), minimum))
                height = _values(self.exact, self.u[-1].unsqueeze(0))[0]
                self.log_z.append(-height - 0.5 * torch.logdet(hessian))

    def recombine(self, n: int, seed: int) -> None:
        """Minimise from new combinations of the minima's columns, until no round finds much."""
        generator = torch.Generator().manual_seed(seed)
        risen = math.inf
        while self.u and risen > _SMALL_RISE:
            known = torch.stack(self.log_z)
            parents = torch.softmax(0.5 * known, 0).cpu()
            first, second = (
                torch.stack(self.u)[parents.multinomial(8 * n, True, generator=generator)]
                for _ in range(2)
            )
            mask = torch.rand(8 * n, len(self.columns), generator=generator) < 0.5
            starts = first.clone()
            starts[:, self.columns] = torch.where(
                mask.to(first.device), first[:, self.columns], second[:, self.columns]
            )
            starts = self._new(starts)[:n]
            if not len(starts):
                break
            self.from_starts(starts)
            risen = float(torch.stack(self.log_z).logsumexp(0) - known.logsumexp(0))

    def _new(self, u: Tensor) -> Tensor:
        """The first of each group of agreeing rows, without those that agree with a minimum."""
        kept = torch.stack(self.u) if self.u else u[:0]
        n = len(kept)
        for row in u:
            difference = torch.where(self.circular, wrap(row - kept), row - kept)
            if not bool((difference[:, self.columns].abs() < self.separation).all(-1).any()):
                kept = torch.cat([kept, row.unsqueeze(0)])
        return kept[n:]

    def best(self, max_free_energy: float) -> _Points:
        """The most populated minima, in that order."""
        if not self.u:
            raise ValueError(
                f"expected minima from {self.n_starts} starts, got none; give more steps or "
                "better starts"
            )
        log_z, order = torch.stack(self.log_z).sort(descending=True)
        n = int((log_z > log_z[0] - max_free_energy).sum())
        return _Points(torch.stack(self.u)[order[:n]], log_z[:n])

    def flanks(
        self, minima: _Points, n: int, cover: float, max_energy: float, seed: int
    ) -> _Points:
        """Points beside the minima, farther than ``cover`` from them and each other, by weight."""
        generator = torch.Generator().manual_seed(seed)
        weights = torch.softmax(0.5 * minima.log_z, 0).cpu()
        parent = weights.multinomial(n, True, generator=generator).to(minima.u.device)
        turned = torch.randint(len(self.columns), (n,), generator=generator)
        angle = math.pi * (2 * torch.rand(n, generator=generator, dtype=torch.float64) - 1)
        starts = minima.u[parent]
        starts[torch.arange(n), self.columns.cpu()[turned]] = angle.to(starts)
        held = self._held(starts)
        heights = _values(self.exact, minima.u)[parent] - _values(self.exact, held)
        log_z = (minima.log_z[parent] + heights).nan_to_num(-math.inf)
        known, kept = minima.u[:, self.columns], []
        for k in log_z.argsort(descending=True).tolist():
            place = held[k, self.columns]
            if log_z[k] < minima.log_z[0] - max_energy:
                break
            if float(wrap(place - known).norm(dim=-1).min()) > cover:
                known = torch.cat([known, place.unsqueeze(0)])
                kept.append(k)
        chosen = torch.tensor(kept, dtype=torch.long, device=held.device)
        return _Points(held[chosen], log_z[chosen])

    def fill(
        self, minima: Tensor, starts: Tensor, cover: float, max_energy: float, most: int
    ) -> Tensor:
        """The minima, and points that fill the gaps between them."""
        held = self._held(starts)
        populated = _values(self.exact, held) < _values(self.exact, minima).min() + max_energy
        return _fill(minima, held[populated], self.columns, cover, most)

    def _held(self, starts: Tensor) -> Tensor:
        """Minimise with all columns held fixed."""
        bar = _Bar("covering", self.progress)
        return _descend(self.tamed, starts, self.steps, bar, fixed=self.columns)

    def partition(self, points: Tensor, minima: Tensor, concentration: float) -> BasinPartition:
        """The partition around the points."""
        circular = self.circular[self.columns]
        kappa = torch.full_like(points[0, self.columns], concentration)
        if not bool(circular.all()):
            inverses = [torch.linalg.inv(_hessian(self.exact, u)).diagonal() for u in minima]
            kappa = torch.where(
                circular, kappa, 1.0 / torch.stack(inverses)[:, self.columns].mean(0)
            )
        return BasinPartition(points[:, self.columns], self.columns, self.circular, kappa)

    def settle(self, points: Tensor, partition: BasinPartition) -> Tensor:
        """Minimise every point in the potential of its own component, all together."""

        def potential(u: Tensor) -> Tensor:
            return self.tamed(u) - torch.log_softmax(partition(u).logits, -1).diagonal()

        return _descend(potential, points, self.steps, _Bar("settling", self.progress))

    def components(
        self, points: Tensor, partition: BasinPartition, n_minima: int, calls: int
    ) -> Basins:
        """The Laplace approximation of every component."""
        parts = []
        for k, point in enumerate(_Bar("components", self.progress)(points)):
            component = _component(self.exact, partition, k)
            u, hessian = _newton(component, point)
            values, vectors = torch.linalg.eigh(hessian)
            covariance = (vectors / values.clamp(min=_FLATTEST)) @ vectors.mT
            u = torch.where(self.circular, wrap(u), u)
            parts.append((u, _values(component, u.unsqueeze(0))[0], covariance))
        minimum, value, covariance = (torch.stack(part) for part in zip(*parts, strict=True))
        return Basins(
            u=minimum,
            value=value,
            covariance=covariance,
            columns=self.columns,
            centres=partition.centres,
            concentration=partition.concentration,
            n_minima=n_minima,
            energy_calls=self.energy.calls - calls,
        )


def _heaviest(minima: _Points, flanks: _Points, most: int) -> tuple[_Points, _Points]:
    """The heaviest of minima and flanks together; a warning says what minima are left out."""
    lightest = torch.cat([minima.log_z, flanks.log_z]).sort(descending=True).values[:most][-1]
    n, n_flanks = int((minima.log_z >= lightest).sum()), int((flanks.log_z >= lightest).sum())
    if n < len(minima.u):
        lost = 1.0 - float(torch.softmax(minima.log_z, 0)[:n].sum())
        warnings.warn(
            f"{len(minima.u) - n} of {len(minima.u)} minima were left out, the best of them "
            f"{float(minima.log_z[0] - minima.log_z[n]):.1f} nats above the lowest, with "
            f"{100 * lost:.2g} % of the weight by Laplace estimate: max_basins is {most}; "
            "raise it, or lower max_free_energy",
            stacklevel=3,
        )
    return _Points(*(x[:n] for x in minima)), _Points(*(x[:n_flanks] for x in flanks))


def _is_minimum(potential: Potential, u: Tensor, hessian: Tensor) -> bool:
    r"""Whether the Hessian is positive definite and the gradient g small, by what is left to gain.

    That is :math:`\tfrac12 g^\top H^{-1} g`, in nats whatever the units of u.
    """
    if not bool(hessian.isfinite().all()) or not float(torch.linalg.eigvalsh(hessian)[0]) > 0:
        return False
    gradient = _gradient(potential, u.unsqueeze(0))[0]
    return float(0.5 * gradient @ torch.linalg.solve(hessian, gradient)) < _CONVERGED


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
                stacklevel=4,
            )
            break
        points = torch.cat([points, candidates[distance.argmax()].unsqueeze(0)])
    return points
