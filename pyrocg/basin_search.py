"""The search for the basins of a target: minima from many starts, and centres between them."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from tqdm.auto import tqdm

from pyrocg.coordinates import Coordinates
from pyrocg.distributions import wrap
from pyrocg.encoders import BasinPartition
from pyrocg.energies.abstract import CappedEnergy
from pyrocg.minima import FLATTEST, Potential, descend, evaluate, hessian_at, is_minimum, newton
from pyrocg.target import BoltzmannTarget

__all__ = ["BasinSearch", "Components", "Points", "heaviest"]

_SMALL_RISE = 1e-3  # of log Z, with which the search ends


@dataclass(frozen=True)
class _Bar:
    """A progress bar around the loop of a stage."""

    stage: str
    shown: bool

    def __call__(self, items: Iterable[Any]) -> Iterable[Any]:
        return tqdm(items, desc=f"basins, {self.stage}", disable=not self.shown)


class Points(NamedTuple):
    """Points (n, n_coordinates) with the log weight of each."""

    u: Tensor
    log_z: Tensor


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


class Components(NamedTuple):
    """Minimum (n, n_coordinates), value there (n,) and covariance of each component."""

    u: Tensor
    value: Tensor
    covariance: Tensor


class BasinSearch:
    """The distinct minima of a target that are known so far, and what is made of them.

    :func:`~pyrocg.basins.find_basins` says what the stages are and does them in order.

    Args:
        target: the density.
        coordinates: reduced coordinates of its configurations.
        columns: indices of the coordinates that tell basins apart.
        separation: minima whose columns all agree within this are one.
        steps: of each descent.
        progress: show a bar for each stage.
    """

    def __init__(
        self,
        target: BoltzmannTarget,
        coordinates: Coordinates,
        columns: Tensor,
        separation: float,
        steps: int,
        progress: bool,
    ) -> None:
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
        u = descend(self.tamed, starts, self.steps, _Bar("relaxing", self.progress))
        value = evaluate(self.exact, u)
        sorted_u = u[value.isfinite()][value[value.isfinite()].argsort()]
        for candidate in _Bar("minima", self.progress)(self._new(sorted_u)):
            minimum, hessian = newton(self.exact, candidate)
            if is_minimum(self.exact, minimum, hessian) and len(self._new(minimum.unsqueeze(0))):
                self.u.append(torch.where(self.circular, wrap(minimum), minimum))
                height = evaluate(self.exact, self.u[-1].unsqueeze(0))[0]
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

    def best(self, max_free_energy: float) -> Points:
        """The most populated minima, in that order.

        Raises:
            ValueError: there are none.
        """
        if not self.u:
            raise ValueError(
                f"expected minima from {self.n_starts} starts, got none; give more steps or "
                "better starts"
            )
        log_z, order = torch.stack(self.log_z).sort(descending=True)
        n = int((log_z > log_z[0] - max_free_energy).sum())
        return Points(torch.stack(self.u)[order[:n]], log_z[:n])

    def flanks(self, minima: Points, n: int, cover: float, max_energy: float, seed: int) -> Points:
        """Points beside the minima, farther than ``cover`` from them and each other, by weight."""
        generator = torch.Generator().manual_seed(seed)
        weights = torch.softmax(0.5 * minima.log_z, 0).cpu()
        parent = weights.multinomial(n, True, generator=generator).to(minima.u.device)
        turned = torch.randint(len(self.columns), (n,), generator=generator)
        angle = math.pi * (2 * torch.rand(n, generator=generator, dtype=torch.float64) - 1)
        starts = minima.u[parent]
        starts[torch.arange(n), self.columns.cpu()[turned]] = angle.to(starts)
        held = self._held(starts)
        heights = evaluate(self.exact, minima.u)[parent] - evaluate(self.exact, held)
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
        return Points(held[chosen], log_z[chosen])

    def fill(
        self, minima: Tensor, starts: Tensor, cover: float, max_energy: float, most: int
    ) -> Tensor:
        """The minima, and points that fill the gaps between them."""
        held = self._held(starts)
        populated = evaluate(self.exact, held) < evaluate(self.exact, minima).min() + max_energy
        return _fill(minima, held[populated], self.columns, cover, most)

    def _held(self, starts: Tensor) -> Tensor:
        """Minimise with all columns held fixed."""
        bar = _Bar("covering", self.progress)
        return descend(self.tamed, starts, self.steps, bar, fixed=self.columns)

    def partition(self, points: Tensor, minima: Tensor, concentration: float) -> BasinPartition:
        """The partition around the points."""
        circular = self.circular[self.columns]
        kappa = torch.full_like(points[0, self.columns], concentration)
        if not bool(circular.all()):
            inverses = [torch.linalg.inv(hessian_at(self.exact, u)).diagonal() for u in minima]
            kappa = torch.where(
                circular, kappa, 1.0 / torch.stack(inverses)[:, self.columns].mean(0)
            )
        return BasinPartition(points[:, self.columns], self.columns, self.circular, kappa)

    def settle(self, points: Tensor, partition: BasinPartition) -> Tensor:
        """Minimise every point in the potential of its own component, all together."""

        def potential(u: Tensor) -> Tensor:
            return self.tamed(u) - torch.log_softmax(partition(u).logits, -1).diagonal()

        return descend(potential, points, self.steps, _Bar("settling", self.progress))

    def components(self, points: Tensor, partition: BasinPartition) -> Components:
        """The Laplace approximation of every component, started at a point of each."""
        parts = []
        for k, point in enumerate(_Bar("components", self.progress)(points)):
            component = _component(self.exact, partition, k)
            u, hessian = newton(component, point)
            values, vectors = torch.linalg.eigh(hessian)
            covariance = (vectors / values.clamp(min=FLATTEST)) @ vectors.mT
            u = torch.where(self.circular, wrap(u), u)
            parts.append((u, evaluate(component, u.unsqueeze(0))[0], covariance))
        return Components(*(torch.stack(part) for part in zip(*parts, strict=True)))


def heaviest(minima: Points, flanks: Points, most: int) -> tuple[Points, Points]:
    """The heaviest of minima and flanks together; a warning says what minima are left out.

    Args:
        minima: in the order of their weights.
        flanks: the same.
        most: how many are kept of both together.
    """
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
    return Points(*(x[:n] for x in minima)), Points(*(x[:n_flanks] for x in flanks))


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
