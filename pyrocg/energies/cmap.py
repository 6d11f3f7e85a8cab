"""Correction maps: an energy of two torsions, tabulated on a grid and splined in between."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pyrocg.energies.bonded import Torsions
from pyrocg.energies.splines import HERMITE, spline_slopes

__all__ = ["CMAPTorsions", "cmap_torsions"]

_TURN = 2.0 * np.pi


@dataclass(frozen=True, eq=False)
class CMAPTorsions(Torsions):
    r"""Pairs of torsions, :math:`\sum_{k, l = 0}^{3} c_{kl} s^k t^l` in the grid cell they are in.

    With :math:`s, t \in [0, 1)` the place of the two torsions in their cell: the natural bicubic
    spline through the grid's energies, periodic in both.
    """

    atoms: Tensor
    """(2 n_pairs, 4): the first torsion of every pair, then the second of every pair"""
    size: Tensor
    """Grid points in a turn, (n_pairs,), integers"""
    start: Tensor
    """First cell of a pair's map, (n_pairs,), integers"""
    coefficients: Tensor
    """:math:`c_{kl}`, (4, 4, n_cells), kJ/mol; cells of the first torsion are next to each other"""

    def profile(self, cosine: Tensor, sine: Tensor) -> tuple[Tensor, Tensor]:
        angle = torch.atan2(sine, cosine)
        size = self.size[:, None]
        scale = size.to(angle.dtype) / _TURN
        first, second = (a * scale for a in torch.where(angle < 0, angle + _TURN, angle).chunk(2))
        # clamped from above for rounding, from below for NaN, which has no integer
        column, row = (p.long().clamp(min=0).minimum(size - 1) for p in (first, second))
        cell = self.start[:, None] + column + size * row
        energy, by_first, by_second = self._spline(cell, first - column, second - row)
        torques = torch.cat([by_first * scale, by_second * scale])
        return torch.cat([energy, torch.zeros_like(energy)]), torques

    def _spline(self, cell: Tensor, s: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The polynomial of a cell and its derivatives, by Horner's rule in both variables."""
        value = by_s = by_t = torch.zeros_like(s)
        for powers in reversed(self.coefficients.unbind(0)):
            inner = inner_by_t = torch.zeros_like(t)
            for c in reversed(powers.unbind(0)):
                inner_by_t = inner_by_t * t + inner
                inner = inner * t + c[cell]
            by_s = by_s * s + value
            value = value * s + inner
            by_t = by_t * s + inner_by_t
        return value, by_s, by_t


def cmap_torsions(force: Any) -> CMAPTorsions | None:
    """The term of a CMAPTorsionForce; None if it is empty."""
    if force.getNumTorsions() == 0:
        return None
    maps = [_map(*force.getMapParameters(k)) for k in range(force.getNumMaps())]
    torsions = np.array([force.getTorsionParameters(i) for i in range(force.getNumTorsions())])
    which = torsions[:, 0]
    sizes = np.array([m.shape[-1] for m in maps])
    starts = np.concatenate([[0], np.cumsum(sizes**2)[:-1]])
    coefficients = np.concatenate([m.reshape(4, 4, -1) for m in maps], axis=-1)
    atoms = np.concatenate([torsions[:, 1:5], torsions[:, 5:9]])
    arrays = atoms, sizes[which], starts[which], coefficients
    return CMAPTorsions(*(torch.from_numpy(np.ascontiguousarray(a)) for a in arrays))


def _map(size: int, energies: Any) -> NDArray[np.float64]:
    """Coefficients (4, 4, rows, columns) of the cells of a map."""
    values = getattr(energies, "_value", energies)
    grid = np.asarray(values, dtype=float).reshape(size, size)
    by_first = _slopes(grid.T).T
    corners = np.array([[grid, _slopes(grid)], [by_first, _slopes(by_first)]])
    # (first's value or slope, second's, rows, columns) to both ends of a cell in either torsion
    ends = np.stack([corners, np.roll(corners, -1, axis=3)], axis=1)
    ends = np.stack([ends, np.roll(ends, -1, axis=3)], axis=3)
    square = ends.reshape(4, 4, size, size)
    return np.einsum("ka,lb,abrc->klrc", HERMITE, HERMITE, square)


def _slopes(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """Slopes, by one row, of the periodic cubic splines down the columns of a table."""
    return spline_slopes(np.concatenate([rows, rows[:1]]), periodic=True)[:-1]
