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
    CustomPairs,
    CustomTorsions,
    Cutoff,
    Quantity,
    Reach,
    SwitchedCutoff,
)
from pyrocg.energies.expressions import Call, Name, Tree, names_in, parse, substitute
from pyrocg.energies.formulas import Formula, evaluate
from pyrocg.energies.geometry import Bend, Stretch, Twist
from pyrocg.energies.splines import TabulatedFunction, tabulated
from pyrocg.energies.terms import Term, UnsupportedForceError

__all__ = [
    "Source",
    "custom_angles",
    "custom_bonds",
    "custom_compounds",
    "custom_externals",
    "custom_pairs",
    "custom_torsions",
    "parsed",
    "per_particle",
]

_DISTANCES = (0.07, 0.13, 0.31, 0.59, 1.3)
"""nm; where an energy of pairs is asked whether it depends on their order."""
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
            UnsupportedForceError: a name or a function is unknown.
        """
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


def custom_pairs(force: Any) -> Term | None:
    """The term of a CustomNonbondedForce; None if no pair is left.

    Raises:
        UnsupportedForceError: the energy of a pair depends on the order of its atoms.
    """
    source, tree = Source.of(force), parsed(force.getEnergyFunction())
    particles = _particles(force, source)
    excluded = {frozenset(force.getExclusionParticles(k)) for k in range(force.getNumExclusions())}
    if force.getNumInteractionGroups():
        pairs = _pairs_of_groups(force, excluded)
        if not pairs:
            return None
        atoms = torch.tensor(pairs)
        first, second = atoms.unbind(1)
        rows = {f"{name}1": v[first] for name, v in particles.items()}
        rows |= {f"{name}2": v[second] for name, v in particles.items()}
        return CustomBonds(atoms, source.formula(tree, ["r"], rows), _reach(force))
    included = ~torch.eye(force.getNumParticles(), dtype=torch.bool)
    for i, j in excluded:
        included[i, j] = included[j, i] = False
    if not included.any():
        return None
    rows = {f"{name}1": v[:, None] for name, v in particles.items()}
    rows |= {f"{name}2": v[None, :] for name, v in particles.items()}
    formula = source.formula(tree, ["r"], rows)
    _check_symmetry(formula, included)
    return CustomPairs(formula, included, _reach(force))


def per_particle(force: Any) -> dict[str, Tensor]:
    """Parameters of the particles of a force by name, (n_particles,)."""
    names = _names(force.getNumPerParticleParameters(), force.getPerParticleParameterName)
    return _rows(names, [force.getParticleParameters(i) for i in range(force.getNumParticles())])


def _particles(force: Any, source: Source) -> dict[str, Tensor]:
    """Parameters and computed values of the particles, (n_particles,)."""
    given, n = per_particle(force), force.getNumParticles()
    known, computed = source.scalars | given, {}
    for k in range(force.getNumComputedValues()):
        name, expression = force.getComputedValueParameters(k)
        try:
            value = evaluate(parsed(expression), known, source.functions)
        except ValueError as error:
            raise UnsupportedForceError(str(error)) from None
        computed[name] = value.expand(n)
    return given | computed


def _pairs_of_groups(force: Any, excluded: set[frozenset[int]]) -> list[tuple[int, int]]:
    """Pairs between the sets of each group; those within both sets of a group count once."""
    pairs = []
    for k in range(force.getNumInteractionGroups()):
        first, second = (set(s) for s in force.getInteractionGroupParameters(k))
        for i in sorted(first):
            for j in sorted(second - {i}):
                twice = i > j and j in first and i in second
                if not twice and frozenset((i, j)) not in excluded:
                    pairs.append((i, j))
    return pairs


def _reach(force: Any) -> Reach:
    if force.getNonbondedMethod() == force.NoCutoff:
        return Reach()
    cutoff = float(force.getCutoffDistance()._value)
    if not force.getUseSwitchingFunction():
        return Cutoff(cutoff)
    return SwitchedCutoff(cutoff, float(force.getSwitchingDistance()._value))


def _check_symmetry(formula: Formula, included: Tensor) -> None:
    r = _tensor(_DISTANCES).expand(*included.shape, -1).contiguous()
    energy, _ = formula({"r": r})
    a, b = energy[included], energy.transpose(0, 1)[included]
    if not torch.allclose(a, b, rtol=1e-9, atol=1e-12, equal_nan=True):
        raise UnsupportedForceError("its energy of a pair depends on the order of the two atoms")


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
