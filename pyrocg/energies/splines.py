"""Tabulated functions of OpenMM's custom forces: discrete ones, and cubic splines on a grid."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pyrocg.energies.terms import Record, UnsupportedForceError

__all__ = ["HERMITE", "Spline", "Table", "TabulatedFunction", "spline_slopes", "tabulated"]

Array: TypeAlias = NDArray[np.float64]

HERMITE = np.array([[1, 0, 0, 0], [0, 0, 1, 0], [-3, 3, -2, -1], [2, -2, 1, 1]], dtype=float)
"""Coefficients of a cubic on (0, 1) from its values, then its slopes, at both ends."""


class TabulatedFunction(Record, ABC):
    """A function of as many arguments as its table has dimensions."""

    sizes: tuple[int, ...]

    @abstractmethod
    def __call__(self, *arguments: Tensor) -> tuple[Tensor, tuple[Tensor | float, ...]]:
        """The value, and the derivative by each argument."""


@dataclass(frozen=True, eq=False)
class Table(TabulatedFunction):
    """Values at whole numbers; an argument is rounded, and NaN comes from outside of the table."""

    values: Tensor
    """(n_values,), the first dimension fastest"""
    sizes: tuple[int, ...]
    """Length of each dimension."""

    def __call__(self, *arguments: Tensor) -> tuple[Tensor, tuple[Tensor | float, ...]]:
        place: Any = 0
        inside: Any = True
        for argument, size, stride in zip(arguments, self.sizes, _strides(self.sizes), strict=True):
            index = torch.floor(argument + 0.5)
            inside = (index >= 0) & (index < size) & inside
            place = place + stride * index.long().clamp(0, size - 1)
        value = torch.where(inside, self.values[place], torch.nan)
        return value, tuple(0.0 for _ in arguments)


@dataclass(frozen=True, eq=False)
class Spline(TabulatedFunction):
    r"""A cubic spline in each dimension, :math:`\sum_k c_{k_1 \ldots k_d} \prod_a s_a^{k_a}`.

    With :math:`s_a \in [0, 1]` the place in the cell of the grid: natural, and 0 outside of the
    grid, or periodic.
    """

    coefficients: Tensor
    """:math:`c`, (4, ..., 4, n_cells), the first dimension's cells next to each other"""
    sizes: tuple[int, ...]
    """Cells in each dimension."""
    lower: tuple[float, ...]
    """Where the grid starts in each dimension."""
    per_width: tuple[float, ...]
    """Cells per unit in each dimension."""
    periodic: bool
    """Whether the function repeats itself; it is 0 outside of the grid otherwise."""

    def __call__(self, *arguments: Tensor) -> tuple[Tensor, tuple[Tensor | float, ...]]:
        cell: Any = 0
        inside: Any = True
        places = []
        for x, size, lower, scale, stride in zip(
            arguments, self.sizes, self.lower, self.per_width, _strides(self.sizes), strict=True
        ):
            t = (x - lower) * scale
            if self.periodic:
                t = t - size * torch.floor(t / size)
            inside = (t >= 0) & (t <= size) & inside
            index = t.long().clamp(0, size - 1)  # from below for NaN, which has no integer
            cell = cell + stride * index
            places.append(t - index)
        value, slopes = _polynomial(self.coefficients, cell, places)
        return torch.where(inside, value, 0.0), tuple(
            torch.where(inside, slope * scale, 0.0)
            for slope, scale in zip(slopes, self.per_width, strict=True)
        )


def _strides(sizes: Sequence[int]) -> list[int]:
    return [int(np.prod(sizes[:k], dtype=int)) for k in range(len(sizes))]


def _polynomial(
    coefficients: Tensor, cell: Tensor, places: Sequence[Tensor]
) -> tuple[Tensor, list[Tensor]]:
    """The polynomial of a cell and its derivatives, by Horner's rule in every variable."""
    if not places:
        return coefficients[cell], []
    s, *others = places
    value = slope = torch.zeros_like(s)
    slopes = [torch.zeros_like(s) for _ in others]
    for powers in reversed(coefficients.unbind(0)):
        inner, inner_slopes = _polynomial(powers, cell, others)
        slope = slope * s + value
        value = value * s + inner
        slopes = [a * s + b for a, b in zip(slopes, inner_slopes, strict=True)]
    return value, [slope, *slopes]


def spline_slopes(rows: Array, periodic: bool) -> Array:
    """Slopes at the points, one apart, of the cubic splines down the columns of a table.

    Natural splines, or periodic ones, whose last row repeats the first. A natural spline is a
    straight line plus a periodic spline that is odd about both of its ends.
    """
    if not periodic:
        ramp = np.arange(len(rows)).reshape(-1, *(1 for _ in rows.shape[1:])) / (len(rows) - 1)
        rise = rows[-1] - rows[0]
        bent = rows - rows[0] - ramp * rise
        odd = np.concatenate([bent, -bent[-2::-1]])
        return spline_slopes(odd, periodic=True)[: len(rows)] + rise / (len(rows) - 1)
    points = rows[:-1]
    waves = 2.0 * np.pi * np.fft.rfftfreq(len(points)).reshape(-1, *(1 for _ in rows.shape[1:]))
    difference = 3.0 * (np.roll(points, -1, axis=0) - np.roll(points, 1, axis=0))
    spectrum = np.fft.rfft(difference, axis=0) / (4.0 + 2.0 * np.cos(waves))
    slopes = np.fft.irfft(spectrum, n=len(points), axis=0)
    return np.concatenate([slopes, slopes[:1]])


def tabulated(function: Any) -> TabulatedFunction:
    """An OpenMM TabulatedFunction as a record.

    Raises:
        UnsupportedForceError: its class is unknown.
    """
    kind = type(function).__name__
    parameters = function.getFunctionParameters()
    if kind == "Discrete1DFunction":
        values = np.asarray(parameters, dtype=float).ravel()
        return Table(torch.from_numpy(values), (len(values),))
    if kind in ("Discrete2DFunction", "Discrete3DFunction"):
        *sizes, values = parameters
        return Table(torch.from_numpy(np.array(values, dtype=float)), tuple(sizes))
    if kind == "Continuous1DFunction":
        values, *bounds = parameters
        return _spline((len(values),), values, bounds, function.getPeriodic())
    if kind in ("Continuous2DFunction", "Continuous3DFunction"):
        d = int(kind[len("Continuous")])
        return _spline(parameters[:d], parameters[d], parameters[d + 1 :], function.getPeriodic())
    raise UnsupportedForceError(f"it has a tabulated function of class {kind}")


def _spline(points: Sequence[int], values: Any, bounds: Sequence[float], periodic: bool) -> Spline:
    coefficients = np.asarray(values, dtype=float).reshape(tuple(points)[::-1]).T
    d = len(points)
    for axis in range(d):  # from (4, ..., points of this axis, ...) to (4, ..., 4, ..., cells)
        rows = np.moveaxis(coefficients, 2 * axis, 0)
        slopes = spline_slopes(rows, periodic)
        ends = np.stack([rows[:-1], rows[1:], slopes[:-1], slopes[1:]])
        cubic = np.tensordot(HERMITE, ends, axes=1)
        coefficients = np.moveaxis(np.moveaxis(cubic, 1, 2 * axis + 1), 0, axis)
    sizes = tuple(n - 1 for n in points)
    cells = np.transpose(coefficients, (*range(d), *reversed(range(d, 2 * d))))
    flat = np.ascontiguousarray(cells).reshape(*(4 for _ in points), -1)
    lower, upper = bounds[0::2], bounds[1::2]
    scale = tuple(n / (b - a) for n, a, b in zip(sizes, lower, upper, strict=True))
    return Spline(torch.from_numpy(flat), sizes, tuple(lower), scale, bool(periodic))
