"""OpenMM's custom forces as terms: their expressions parsed, their parameters filled in."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pyrocg.energies.custom import (
    Coordinate,
    CustomAngles,
    CustomBonds,
    CustomCompounds,
    CustomExternals,
    CustomTorsions,
    Quantity,
    Reach,
)
from pyrocg.energies.expressions import Call, Name, Tree, names_in, parse, substitute
from pyrocg.energies.formulas import Formula
from pyrocg.energies.geometry import Bend, Stretch, Twist
from pyrocg.energies.splines import TabulatedFunction, tabulated
from pyrocg.energies.terms import Term, UnsupportedForceError

__all__ = [
    "Source",
    "custom_angles",
    "custom_bonds",
    "custom_compounds",
    "custom_externals",
    "custom_torsions",
    "parsed",
    "per_particle",
]

_GEOMETRY: dict[str, tuple[type[Stretch] | type[Bend] | type[Twist], int]] = {
    "distance": (Stretch, 2),
    "angle": (Bend, 3),
    "dihedral": (Twist, 4),
}
_COUNT_OF_TABLES = "getNumTabulatedFunctions"
_AXES = ("x", "y", "z")
_POINTS = {
    "pointdistance": "sqrt(square(x1-x2)+square(y1-y2)+square(z1-z2))",
    "pointangle": (
        "atan2(sqrt(square(uy*wz-uz*wy)+square(uz*wx-ux*wz)+square(ux*wy-uy*wx)),"
        " ux*wx+uy*wy+uz*wz);"
        "ux=x1-x2; uy=y1-y2; uz=z1-z2; wx=x3-x2; wy=y3-y2; wz=z3-z2"
    ),
    "pointdihedral": (
        "atan2(sqrt(gx*gx+gy*gy+gz*gz)*(ax*hx+ay*hy+az*hz), ax*bx+ay*by+az*bz);"
        "ax=fy*gz-fz*gy; ay=fz*gx-fx*gz; az=fx*gy-fy*gx;"
        "bx=hy*gz-hz*gy; by=hz*gx-hx*gz; bz=hx*gy-hy*gx;"
        "fx=x1-x2; fy=y1-y2; fz=z1-z2; gx=x2-x3; gy=y2-y3; gz=z2-z3; hx=x4-x3; hy=y4-y3; hz=z4-z3"
    ),
}
"""The same of points whose coordinates are any expressions, three for each point."""


@dataclass(frozen=True)
class Source:
    """What the expressions of a force can refer to beside variables and its rows."""

    scalars: dict[str, Tensor]
    functions: dict[str, TabulatedFunction]

    @classmethod
    def of(cls, force: Any) -> Source:
        """The global parameters, at their defaults, and the tabulated functions of a force."""
        scalars = {
            force.getGlobalParameterName(k): _tensor(force.getGlobalParameterDefaultValue(k))
            for k in range(force.getNumGlobalParameters())
        }
        # not every class of custom force has tabulated functions
        count = force.getNumTabulatedFunctions() if hasattr(force, _COUNT_OF_TABLES) else 0
        functions = {
            force.getTabulatedFunctionName(k): tabulated(force.getTabulatedFunction(k))
            for k in range(count)
        }
        return cls(scalars, functions)

    def without(self, names: set[str]) -> Source:
        """The same where some names mean something else."""
        scalars = {name: v for name, v in self.scalars.items() if name not in names}
        return Source(scalars, self.functions)

    def formula(self, tree: Tree, variables: Sequence[str], rows: dict[str, Tensor]) -> Formula:
        """An expression of variables, with the parameters of rows beside those of the force.

        Raises:
            UnsupportedForceError: a name or a function is unknown, or a name has two meanings.
        """
        if twice := set(variables) & (self.scalars.keys() | rows.keys()):
            raise UnsupportedForceError(f"{min(twice)!r} is a parameter and a variable")
        try:
            return Formula.of(tree, variables, self.scalars | rows, self.functions)
        except ValueError as error:
            raise UnsupportedForceError(str(error)) from None


def parsed(expression: str) -> Tree:
    """The tree of an expression.

    Raises:
        UnsupportedForceError: it is none.
    """
    try:
        return parse(expression)
    except ValueError as error:
        raise UnsupportedForceError(str(error)) from None


def _tensor(values: Any) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def _rows(names: Sequence[str], values: Sequence[Sequence[float]]) -> dict[str, Tensor]:
    """Parameters by name, (n_rows,), from those of every row."""
    table = _tensor([list(row) for row in values]).reshape(len(values), len(names))
    return dict(zip(names, table.unbind(1), strict=True))


def _names(count: int, name: Callable[[int], str]) -> list[str]:
    return [name(k) for k in range(count)]


def custom_bonds(force: Any) -> Term | None:
    """The term of a CustomBondForce; None if it is empty."""
    names = _names(force.getNumPerBondParameters(), force.getPerBondParameterName)
    bonds = [force.getBondParameters(i) for i in range(force.getNumBonds())]
    if not bonds:
        return None
    formula = _bonded_formula(force, ["r"], names, [row[-1] for row in bonds])
    return CustomBonds(torch.tensor([row[:2] for row in bonds]), formula, Reach())


def custom_angles(force: Any) -> Term | None:
    """The term of a CustomAngleForce; None if it is empty."""
    names = _names(force.getNumPerAngleParameters(), force.getPerAngleParameterName)
    angles = [force.getAngleParameters(i) for i in range(force.getNumAngles())]
    if not angles:
        return None
    formula = _bonded_formula(force, ["theta"], names, [row[-1] for row in angles])
    return CustomAngles(torch.tensor([row[:3] for row in angles]), formula)


def custom_torsions(force: Any) -> Term | None:
    """The term of a CustomTorsionForce; None if it is empty."""
    names = _names(force.getNumPerTorsionParameters(), force.getPerTorsionParameterName)
    torsions = [force.getTorsionParameters(i) for i in range(force.getNumTorsions())]
    if not torsions:
        return None
    formula = _bonded_formula(force, ["theta"], names, [row[-1] for row in torsions])
    return CustomTorsions(torch.tensor([row[:4] for row in torsions]), formula)


def custom_externals(force: Any) -> Term | None:
    """The term of a CustomExternalForce; None if it is empty."""
    names = _names(force.getNumPerParticleParameters(), force.getPerParticleParameterName)
    particles = [force.getParticleParameters(i) for i in range(force.getNumParticles())]
    if not particles:
        return None
    formula = _bonded_formula(force, _AXES, names, [row[-1] for row in particles])
    return CustomExternals(torch.tensor([row[:1] for row in particles]), formula)


def _bonded_formula(
    force: Any, variables: Sequence[str], names: Sequence[str], values: Sequence[Sequence[float]]
) -> Formula:
    tree = parsed(force.getEnergyFunction())
    return Source.of(force).formula(tree, variables, _rows(names, values))


def per_particle(force: Any) -> dict[str, Tensor]:
    """Parameters of the particles of a force by name, (n_particles,)."""
    names = _names(force.getNumPerParticleParameters(), force.getPerParticleParameterName)
    return _rows(names, [force.getParticleParameters(i) for i in range(force.getNumParticles())])


def custom_compounds(force: Any) -> Term | None:
    """The term of a CustomCompoundBondForce; None if it is empty.

    Raises:
        UnsupportedForceError: the expression refers to a particle that there is not.
    """
    names = _names(force.getNumPerBondParameters(), force.getPerBondParameterName)
    bonds = [force.getBondParameters(i) for i in range(force.getNumBonds())]
    if not bonds:
        return None
    members = {f"p{k + 1}": k for k in range(force.getNumParticlesPerBond())}
    quantities: dict[str, Quantity] = {}

    def replace(call: Call) -> Tree | None:
        if call.function in _POINTS:
            return _of_points(call)
        if call.function not in _GEOMETRY:
            return None
        quantity = _quantity(call, members)
        quantities[quantity.name] = quantity
        return Name(quantity.name)

    tree = substitute(parsed(force.getEnergyFunction()), replace)
    used = names_in(tree) - set(names)
    coordinates = tuple(
        Coordinate(f"{axis}{k + 1}", k, a)
        for k in members.values()
        for a, axis in enumerate(_AXES)
        if f"{axis}{k + 1}" in used or (k, a) == (0, 0)  # a constant has no variable: x1 is one
    )
    variables = [*quantities, *(c.name for c in coordinates)]
    rows = _rows(names, [row[1] for row in bonds])
    formula = Source.of(force).formula(tree, variables, rows)
    atoms = torch.tensor([list(row[0]) for row in bonds])
    return CustomCompounds(atoms, formula, tuple(quantities.values()), coordinates)


def _quantity(call: Call, members: dict[str, int]) -> Quantity:
    kind, size = _GEOMETRY[call.function]
    particles = [a.name if isinstance(a, Name) else "" for a in call.arguments]
    if len(particles) != size or not all(p in members for p in particles):
        raise UnsupportedForceError(
            f"{call.function} is not of {size} of the particles {', '.join(members)}"
        )
    name = f"{call.function}({','.join(particles)})"
    return Quantity(name, kind, tuple(members[p] for p in particles))


def _of_points(call: Call) -> Tree:
    """A distance, angle or torsion of points, written out in their coordinates."""
    form = parse(_POINTS[call.function])
    points = len({name for name in names_in(form) if name[0] == "x"})
    names = [f"{axis}{k + 1}" for k in range(points) for axis in _AXES]
    if len(call.arguments) != len(names):
        raise UnsupportedForceError(f"{call.function} has not {len(names)} arguments")
    return parse(_POINTS[call.function], dict(zip(names, call.arguments, strict=True)))
