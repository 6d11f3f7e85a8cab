r"""Terms of a force field: small frozen records of tensors that know their energy and its gradient.

Everything is computed with the batch as the last dimension: a configuration is a column, an
operation runs over a whole row, and a processor takes as many configurations at a time as its
vector registers hold. Gradients are written out by hand; an energy function differentiated by
machine costs two to three times as much here.

There are two kinds of term. A :class:`BondedTerm` sees a few named atoms at a time and returns the
gradient as *arms*, vectors that add to some of those atoms and subtract from others. A
:class:`PairTerm` sees all distances :math:`r_{ij}` at once and returns the *slope*
:math:`(\partial U / \partial r_{ij}) / r_{ij}`, so that all pair terms share one pass over the
vectors :math:`x_i - x_j`.

Every pair of n atoms occurs once, in rows: row k = 1, ..., n/2 pairs each atom i with atom i + k,
counted in a circle. The second atoms of a row are then a slice of the atoms, next to each other in
memory. For even n the last row meets every pair twice; the second half of it is *empty*: the
parameters there make terms of pairs vanish.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, NamedTuple, TypeVar

import torch
from torch import Tensor

__all__ = [
    "BondedTerm",
    "PairTerm",
    "Pairs",
    "PairRows",
    "Potential",
    "Record",
    "Term",
    "UnsupportedForceError",
    "Vector",
    "by_rows",
    "cross",
    "dot",
]

R = TypeVar("R", bound="Record")
Vector = tuple[Tensor, Tensor, Tensor]
"""Components x, y, z, each of shape ``(rows, batch)``."""


class UnsupportedForceError(ValueError):
    """A force of a System has no term here; OpenMM itself can still evaluate it."""


def dot(a: Vector, b: Vector) -> Tensor:
    """The scalar product, row by row."""
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]


def cross(a: Vector, b: Vector) -> Vector:
    """The vector product, row by row."""
    return (
        a[1] * b[2] - a[2] * b[1],
        a[2] * b[0] - a[0] * b[2],
        a[0] * b[1] - a[1] * b[0],
    )


def subtract(a: Vector, b: Vector) -> Vector:
    """a - b, row by row."""
    return (a[0] - b[0], a[1] - b[1], a[2] - b[2])


def scale(factor: Tensor, a: Vector) -> Vector:
    """factor * a, row by row."""
    return (factor * a[0], factor * a[1], factor * a[2])


@dataclass(frozen=True, eq=False)
class Record:
    """A frozen dataclass of tensors and other records."""

    def to(self: R, dtype: torch.dtype, device: torch.device) -> R:
        """The same record with its real numbers in ``dtype``, on ``device``."""
        return replace(
            self, **{f.name: _to(getattr(self, f.name), dtype, device) for f in fields(self)}
        )


def _to(value: Any, dtype: torch.dtype, device: torch.device) -> Any:
    if isinstance(value, Record):
        return value.to(dtype, device)
    if isinstance(value, tuple):
        return tuple(_to(v, dtype, device) for v in value)
    if isinstance(value, Tensor):
        return value.to(device, dtype if value.is_floating_point() else value.dtype)
    return value


class Term(Record, ABC):
    """One force of an OpenMM System."""

    def energy(self, positions: Tensor) -> Tensor:
        """Energies (batch,) in kJ/mol of positions (batch, n_atoms, 3) in nm."""
        return Potential.of((self,), positions.shape[-2]).energy_and_gradient(positions)[0]


class BondedTerm(Term):
    """A sum over groups of a few atoms.

    A subclass has a field ``atoms`` (n_groups, n_members), the 0-based indices, and a ``pattern``
    of triples (member, arm, sign) that says to which members which arm is added.
    """

    atoms: Tensor

    @property
    @abstractmethod
    def pattern(self) -> tuple[tuple[int, int, int], ...]:
        """Which arm is added to which member."""

    @abstractmethod
    def local(self, members: Sequence[Vector]) -> tuple[Tensor, tuple[Vector, ...]]:
        """Energies (n_groups, batch) and the arms of their gradients, from member positions."""


class PairTerm(Term):
    """A function of all distances."""

    reaches_all: ClassVar[bool] = False  # whether NaN of any atom is NaN of this energy

    @abstractmethod
    def pairwise(self, pairs: Pairs) -> tuple[Tensor, Tensor]:
        """Energies (batch,) and slopes (n_rows, n_atoms, batch)."""


@dataclass(frozen=True, eq=False)
class PairRows(Record):
    """Which atoms the rows of pairs are of."""

    row: Tensor
    """0, 1, ... in every column, (n_rows, n_atoms)"""
    first: Tensor
    """The atom that a row pairs with each atom as its second, (n_rows, n_atoms)"""

    @classmethod
    def of(cls, n_atoms: int) -> PairRows:
        """The rows of all pairs."""
        row = torch.arange(n_atoms // 2)[:, None].expand(-1, n_atoms).contiguous()
        return cls(row, (torch.arange(n_atoms) - row - 1) % n_atoms)

    def seconds(self, values: Tensor) -> Tensor:
        """Values (n_atoms, batch) of the second atoms, (n_rows, n_atoms, batch)."""
        n_rows, n_atoms = self.first.shape
        circle = torch.cat([values, values[:n_rows]])
        return circle.unfold(0, n_atoms, 1)[1:].permute(0, 2, 1)

    def collect(self, of_first: Tensor, of_second: Tensor) -> Tensor:
        """Sums (n_atoms, batch) at each atom of what pairs give to their first and second atoms."""
        return (of_first + of_second[self.row, self.first]).sum(0)


def by_rows(table: Tensor, empty: float | None = 0.0) -> Tensor:
    """Parameters of ordered pairs (n_atoms, n_atoms) in rows (n_rows, n_atoms).

    Args:
        table: the parameters.
        empty: what they are where a row is empty; None leaves those of the pair.

    Example:
        >>> import torch
        >>> by_rows(torch.arange(16.0).reshape(4, 4)).tolist()
        [[1.0, 6.0, 11.0, 12.0], [2.0, 7.0, 0.0, 0.0]]
    """
    n = len(table)
    first = torch.arange(n)
    row = torch.arange(n // 2)[:, None]
    values = table[first, (first + row + 1) % n]
    if empty is None:
        return values
    return values.masked_fill((2 * (row + 1) == n) & (2 * first >= n), empty)


class Pairs(NamedTuple):
    """Geometry of all pairs of atoms, each entry of shape (n_rows, n_atoms, batch), nm."""

    rows: PairRows
    offset: Vector
    """x_i - x_j."""
    squared: Tensor
    distance: Tensor
    inverse: Tensor

    @classmethod
    def of(cls, x: Sequence[Tensor], rows: PairRows) -> Pairs:
        """Pairs of coordinates x, y, z, each (n_atoms, batch)."""
        px, py, pz = (c - rows.seconds(c) for c in x)
        distance = torch.sqrt(px * px + py * py + pz * pz)
        # from the distance, the one array that the compiler then keeps
        return cls(rows, (px, py, pz), distance * distance, distance, 1.0 / distance)


@dataclass(frozen=True, eq=False)
class Incidence(Record):
    """Which arms add up to the gradient at each atom: a gather, where a scatter would be atomic.

    Atoms are the last dimension: next to each other in the dimension that is summed, the compiler
    would take the slots, not the batch, for its vectors (5 times slower).
    """

    slots: Tensor
    """Rows of the stacked arms, (max_degree, n_atoms); 0 where an atom has fewer."""
    signs: Tensor
    """+1 or -1, and 0 where an atom has fewer, (max_degree, n_atoms)."""

    @classmethod
    def of(cls, term: BondedTerm, n_atoms: int) -> Incidence:
        """The incidence of a term's arms on the atoms."""
        found: list[list[tuple[int, int]]] = [[] for _ in range(n_atoms)]
        groups = term.atoms.tolist()
        for member, arm, sign in term.pattern:
            for group, atoms in enumerate(groups):
                found[atoms[member]].append((arm * len(groups) + group, sign))
        degree = max(map(len, found))
        padded = torch.tensor([f + [(0, 0)] * (degree - len(f)) for f in found])
        slots, signs = padded.permute(2, 1, 0).contiguous()
        return cls(slots, signs.to(torch.float64))

    def gather(self, arms: Sequence[Vector]) -> Vector:
        """Gradient at the atoms, components (n_atoms, batch), of arms (n_groups, batch) each."""
        signs = self.signs[:, :, None]
        gx, gy, gz = (
            (torch.cat(component)[self.slots] * signs).sum(0)
            for component in zip(*arms, strict=True)
        )
        return gx, gy, gz


@dataclass(frozen=True, eq=False)
class Potential(Record):
    """A sum of terms over the same atoms."""

    terms: tuple[Term, ...]
    incidences: tuple[Incidence, ...]
    """One for every bonded term, in their order."""
    rows: PairRows
    """Of all pairs."""
    n_atoms: int

    @classmethod
    def of(cls, terms: Sequence[Term], n_atoms: int) -> Potential:
        """The sum of terms, in float64 on the CPU."""
        bonded = (t for t in terms if isinstance(t, BondedTerm))
        return cls(
            tuple(terms),
            tuple(Incidence.of(t, n_atoms) for t in bonded),
            PairRows.of(n_atoms),
            n_atoms,
        )

    def energy_and_gradient(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Energies (batch,) and gradients (batch, n_atoms, 3) of positions (batch, n_atoms, 3)."""
        energy, gradient = self.columns(positions.permute(2, 1, 0).contiguous())
        return energy, gradient.permute(2, 1, 0)

    def columns(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Energies (batch,) and gradients (3, n_atoms, batch) of positions (3, n_atoms, batch)."""
        energy = x.new_zeros(x.shape[-1])
        parts: list[Vector] = []
        bonded = [t for t in self.terms if isinstance(t, BondedTerm)]
        for term, incidence in zip(bonded, self.incidences, strict=True):
            members = [x[:, column].unbind(0) for column in term.atoms.unbind(1)]
            energies, arms = term.local(members)
            energy = energy + energies.sum(0)
            parts.append(incidence.gather(arms))
        if len(bonded) < len(self.terms):
            pair_energy, part = self._pairwise(x)
            energy = energy + pair_energy
            parts.append(part)
        reached = self.n_atoms > 1 and any(
            isinstance(t, PairTerm) and t.reaches_all for t in self.terms
        )
        if not reached:
            # NaN for an atom that is nowhere, whoever looks at it; beside all pairs the sum would
            # cost as much as they do, because it keeps the compiler from joining their loops
            energy = energy + (0.0 * x).sum((0, 1))
        if not parts:
            return energy, torch.zeros_like(x)
        return energy, torch.stack([sum(c[1:], c[0]) for c in zip(*parts, strict=True)])

    def _pairwise(self, x: Tensor) -> tuple[Tensor, Vector]:
        pairs = Pairs.of(x.unbind(0), self.rows)
        results = [t.pairwise(pairs) for t in self.terms if isinstance(t, PairTerm)]
        energy, slope = (sum(parts[1:], parts[0]) for parts in zip(*results, strict=True))
        pulls = (slope * offset for offset in pairs.offset)
        gx, gy, gz = (self.rows.collect(pull, -pull) for pull in pulls)
        return energy, (gx, gy, gz)
