"""Affine frames around a generator, in which it is about standard normal."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from pyro import poutine
from torch import Tensor

from pyrocg.cgmodel import CoarseGrainedModel
from pyrocg.conditions import at_target
from pyrocg.distributions import wrap
from pyrocg.traces import drawn_values

__all__ = ["Frame", "Scales", "draw_values"]

_PER_GROUP = 2000  # draws of the generator for the scales of each component
_FEWEST = 10  # of a group, to have scales of its own


@dataclass(frozen=True)
class Scales:
    r"""An affine frame around the generator, :math:`u = m_g + (h - \bar h_g) B_g + L_g e`.

    One for each group g, a value of the discrete latents, with h the continuous ones: in e the
    generator is about standard normal. Any frame leaves the transitions exact. Circular coordinates
    come last in e, so that the others know nothing of full turns.

    Attributes:
        keys: a zero and the values of the discrete latents of each group, shape ``(n_groups,
            1 + n_discrete)``. The last row of the others, one more, is that of all groups together.
        centre: :math:`m_g`, shape ``(n_groups + 1, n_coordinates)``.
        origin: :math:`\bar h_g`, shape ``(n_groups + 1, n_continuous)``.
        loadings: :math:`B_g`, shape ``(n_groups + 1, n_continuous, n_coordinates)``.
        tril: :math:`L_g`, lower triangular, shape ``(n_groups + 1, n_coordinates,
            n_coordinates)``; its rows are the coordinates in their order in e.
        circular: which coordinates are circular, shape ``(n_coordinates,)``.
    """

    keys: Tensor
    centre: Tensor
    origin: Tensor
    loadings: Tensor
    tril: Tensor
    circular: Tensor

    @property
    def order(self) -> Tensor:
        """Coordinates of u in their order in e: circular ones last."""
        return self.circular.int().argsort(stable=True)

    @classmethod
    @torch.no_grad()
    def of_generator(cls, model: CoarseGrainedModel) -> Scales:
        """Fit them to draws of the generator, which cost no energies."""
        circular, dtype = model.coordinates.circular, model.model.origin.dtype
        components = len(getattr(model.prior, "shares", torch.ones(1)))
        with at_target(model, torch.ones_like):
            parts = [draw_values(model, _PER_GROUP) for _ in range(components)]
        values = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        u = values.pop("u").double()
        discrete, h = _features(values, len(u))
        keys, group = torch.unique(discrete, dim=0, return_inverse=True)
        counts = torch.bincount(group, minlength=len(keys))
        kept = (counts >= _FEWEST).nonzero()[:, 0]
        rows = [group == g for g in kept] + [torch.ones_like(group, dtype=torch.bool)]
        found = [_affine(u[row], h[row], circular) for row in rows]
        centre, origin, loadings, tril = (
            torch.stack(column).to(dtype) for column in zip(*found, strict=True)
        )
        return cls(keys[kept], centre, origin, loadings, tril, circular)

    def frame(self, latents: dict[str, Tensor], n: int) -> Frame:
        """Return the frame of each of n particles."""
        discrete, h = _features(latents, n)
        same = (discrete[:, None] == self.keys).all(-1)
        group = torch.cat([same, same.new_ones(n, 1)], 1).int().argmax(-1)  # the last: all together
        away = (h.to(self.origin) - self.origin[group]).unsqueeze(-2)
        centre = self.centre[group] + (away @ self.loadings[group]).squeeze(-2)
        return Frame(centre, self.tril[group], self.order, self.circular[self.order])


@dataclass(frozen=True)
class Frame:
    """The frame of each of n particles: centre of u, L, order of u in e, what is circular in e."""

    centre: Tensor
    tril: Tensor
    order: Tensor
    circular: Tensor

    def __call__(self, e: Tensor) -> Tensor:
        """Return u, not wrapped."""
        return self.centre + _dot(self.tril, e)[:, self.order.argsort()]

    def inverse(self, u: Tensor) -> Tensor:
        """Return e of that turn of u which is closest to the centre."""
        away = (u - self.centre)[:, self.order]
        away = torch.where(self.circular, wrap(away), away).unsqueeze(-1)
        return torch.linalg.solve_triangular(self.tril, away, upper=False).squeeze(-1)

    def pull(self, slope: Tensor) -> Tensor:
        """Gradient in e of what has this gradient in u."""
        return _dot(self.tril.mT, slope[:, self.order])


def draw_values(model: CoarseGrainedModel, n: int) -> dict[str, Tensor]:
    """Draw values of the generator's sites by name; no energy call."""
    with torch.no_grad():
        return drawn_values(poutine.trace(model.guide).get_trace(n))


def _features(latents: dict[str, Tensor], n: int) -> tuple[Tensor, Tensor]:
    """Discrete latents, after a zero, and continuous ones, as rows of integers and of numbers."""
    rows = [v.reshape(n, -1) for _, v in sorted(latents.items())]
    discrete = [v.long() for v in rows if not v.is_floating_point()]
    continuous = [v.double() for v in rows if v.is_floating_point()]
    device = next(iter(latents.values())).device
    return (
        torch.cat([torch.zeros(n, 1, dtype=torch.long, device=device), *discrete], 1),
        torch.cat([torch.zeros(n, 0, dtype=torch.float64, device=device), *continuous], 1),
    )


def _affine(u: Tensor, h: Tensor, circular: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Centre, origin, loadings and L of samples, in float64."""
    n, d = u.shape
    centre = torch.where(circular, torch.atan2(u.sin().mean(0), u.cos().mean(0)), u.mean(0))
    away = torch.where(circular, wrap(u - centre), u - centre)
    origin = h.mean(0)
    x = h - origin
    ridge = 1e-6 * n * torch.eye(x.shape[1], dtype=x.dtype, device=x.device)
    loadings = torch.linalg.solve(x.mT @ x + ridge, x.mT @ away)
    rest = (away - x @ loadings)[:, circular.int().argsort(stable=True)]
    covariance = rest.mT @ rest / n
    variance = covariance.diagonal() + 1e-12
    shrunk = (d / (d + n)) ** 2  # so that few samples give a matrix of full rank too
    return (
        centre,
        origin,
        loadings,
        torch.linalg.cholesky((1 - shrunk) * covariance + shrunk * variance.diag()),
    )


def _dot(matrices: Tensor, vectors: Tensor) -> Tensor:
    return (matrices @ vectors.unsqueeze(-1)).squeeze(-1)
