"""Terms of OpenMM's custom forces: any expression of distances, angles, torsions, coordinates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pyrocg.energies.bonded import Angles, Bonds, Torsions
from pyrocg.energies.formulas import Formula
from pyrocg.energies.geometry import Bend, Stretch, Twist
from pyrocg.energies.terms import BondedTerm, Pairs, PairTerm, Record, Vector

__all__ = [
    "CustomAngles",
    "CustomBonds",
    "CustomCompounds",
    "CustomExternals",
    "CustomPairs",
    "CustomTorsions",
    "Cutoff",
    "Quantity",
    "Reach",
    "SwitchedCutoff",
]


@dataclass(frozen=True, eq=False)
class Reach(Record):
    """How far two atoms act on each other: any distance."""

    def limit(self, distance: Tensor, energy: Tensor, slope: Tensor) -> tuple[Tensor, Tensor]:
        """Energy, and derivative by the distance, within reach."""
        return energy, slope


@dataclass(frozen=True, eq=False)
class Cutoff(Reach):
    """Below a cutoff."""

    cutoff: float
    """nm"""

    def limit(self, distance: Tensor, energy: Tensor, slope: Tensor) -> tuple[Tensor, Tensor]:
        beyond = distance >= self.cutoff  # NaN is not, and stays NaN
        return torch.where(beyond, 0.0, energy), torch.where(beyond, 0.0, slope)


@dataclass(frozen=True, eq=False)
class SwitchedCutoff(Cutoff):
    r"""Below a cutoff, multiplied by :math:`1 - 10 t^3 + 15 t^4 - 6 t^5`.

    :math:`t = (r - r_s) / (r_c - r_s)` within the switch, and 0 before it.
    """

    start: float
    """:math:`r_s`, nm"""

    def limit(self, distance: Tensor, energy: Tensor, slope: Tensor) -> tuple[Tensor, Tensor]:
        per_width = 1.0 / (self.cutoff - self.start)
        t = ((distance - self.start) * per_width).clamp(min=0.0)
        factor = 1.0 + t * t * t * (-10.0 + t * (15.0 - 6.0 * t))
        fall = t * t * (-30.0 + t * (60.0 - 30.0 * t)) * per_width
        return super().limit(distance, energy * factor, slope * factor + energy * fall)


@dataclass(frozen=True, eq=False)
class CustomBonds(Bonds):
    """An expression of the distance ``r`` of two atoms."""

    atoms: Tensor
    """(n_bonds, 2)"""
    formula: Formula
    """Rows are bonds."""
    reach: Reach

    def profile(self, distance: Tensor) -> tuple[Tensor, Tensor]:
        energy, slopes = self.formula({"r": distance})
        return self.reach.limit(distance, energy, slopes["r"])


@dataclass(frozen=True, eq=False)
class CustomAngles(Angles):
    """An expression of an angle ``theta``, the second atom at the vertex."""

    atoms: Tensor
    """(n_angles, 3)"""
    formula: Formula
    """Rows are angles."""

    def profile(self, angle: Tensor) -> tuple[Tensor, Tensor]:
        energy, slopes = self.formula({"theta": angle})
        return energy, slopes["theta"]


@dataclass(frozen=True, eq=False)
class CustomTorsions(Torsions):
    """An expression of a torsion ``theta`` in (-pi, pi]."""

    atoms: Tensor
    """(n_torsions, 4)"""
    formula: Formula
    """Rows are torsions."""

    def profile(self, cosine: Tensor, sine: Tensor) -> tuple[Tensor, Tensor]:
        energy, slopes = self.formula({"theta": torch.atan2(sine, cosine)})
        return energy, slopes["theta"]


@dataclass(frozen=True, eq=False)
class CustomExternals(BondedTerm):
    """An expression of the coordinates ``x``, ``y``, ``z`` of an atom."""

    pattern = ((0, 0, 1),)
    atoms: Tensor
    """(n_particles, 1)"""
    formula: Formula
    """Rows are particles."""

    def local(self, members: Sequence[Vector]) -> tuple[Tensor, tuple[Vector, ...]]:
        ((x, y, z),) = members
        energy, slopes = self.formula({"x": x, "y": y, "z": z})
        return energy, ((slopes["x"], slopes["y"], slopes["z"]),)


@dataclass(frozen=True, eq=False)
class CustomPairs(PairTerm):
    """An expression of the distance ``r`` of any two atoms, symmetric in them."""

    formula: Formula
    """Rows are pairs, (n_rows, n_atoms)."""
    included: Tensor
    """Which pairs count, (n_rows, n_atoms)."""
    reach: Reach

    def pairwise(self, pairs: Pairs) -> tuple[Tensor, Tensor]:
        energy, slopes = self.formula({"r": pairs.distance})
        energy, slope = self.reach.limit(pairs.distance, energy, slopes["r"])
        included = self.included[:, :, None]
        energy = torch.where(included, energy, 0.0)
        return energy.sum(0).sum(0), torch.where(included, slope * pairs.inverse, 0.0)


@dataclass(frozen=True)
class Quantity:
    """A distance, an angle or a torsion of some members of a compound."""

    name: str
    """What the expression calls it."""
    kind: type[Stretch] | type[Bend] | type[Twist]
    members: tuple[int, ...]


@dataclass(frozen=True)
class Coordinate:
    """A coordinate of a member of a compound."""

    name: str
    """What the expression calls it."""
    member: int
    axis: int


@dataclass(frozen=True, eq=False)
class CustomCompounds(BondedTerm):
    """An expression of distances, angles, torsions and coordinates of a few atoms."""

    atoms: Tensor
    """(n_compounds, n_members)"""
    formula: Formula
    """Rows are compounds."""
    quantities: tuple[Quantity, ...]
    coordinates: tuple[Coordinate, ...]

    @property
    def pattern(self) -> tuple[tuple[int, int, int], ...]:
        return tuple((m, m, 1) for m in range(self.atoms.shape[1]))

    def local(self, members: Sequence[Vector]) -> tuple[Tensor, tuple[Vector, ...]]:
        shapes = [q.kind.of([members[m] for m in q.members]) for q in self.quantities]
        values = {c.name: members[c.member][c.axis] for c in self.coordinates}
        values |= {q.name: s.value for q, s in zip(self.quantities, shapes, strict=True)}
        energy, slopes = self.formula(values)
        zero = torch.zeros_like(energy)
        pulls = [[zero, zero, zero] for _ in members]
        for c in self.coordinates:
            pulls[c.member][c.axis] = pulls[c.member][c.axis] + slopes[c.name]
        for q, shape in zip(self.quantities, shapes, strict=True):
            arms = shape.arms(slopes[q.name])
            for member, arm, sign in q.kind.pattern:
                pull = pulls[q.members[member]]
                pull[:] = [p + sign * a for p, a in zip(pull, arms[arm], strict=True)]
        return energy, tuple((x, y, z) for x, y, z in pulls)
