"""OpenMM's CustomGBForce as a term: its expressions are those of a known solvent, or refused."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pyrocg.energies.born import (
    BornRadii,
    Descreening,
    DirectRadii,
    GeneralizedBorn,
    NeckDescreening,
    Polarization,
    RescaledRadii,
    SaltPolarization,
    UnburiedDescreening,
    both_ways,
)
from pyrocg.energies.expressions import Tree, names_in, parse, unify
from pyrocg.energies.formulas import evaluate
from pyrocg.energies.splines import TabulatedFunction, tabulated
from pyrocg.energies.terms import Term, UnsupportedForceError, by_rows

__all__ = ["custom_gb", "polarization"]

Array: TypeAlias = NDArray[np.float64]

_VARIABLES = {"r", "I", "B", "B1", "B2", "x", "y", "z"}
"""What expressions depend on beside parameters; everything else in a known form is a hole."""
_SPHERES = (
    "select(step(r+outer-inner),"
    " 0.5*(1/L-1/U+0.25*(r-outer^2/r)*(1/(U^2)-1/(L^2))+0.5*log(L/U)/r), 0);"
    "U=r+outer; L=max(inner, D); D=abs(r-outer)"
)
_NECK = (
    "spheres+weight*neck; neck=step(reach-r)*depth/(1+square*(r-peak)^2+sixth*(r-peak)^6); spheres="
)
_DESCREENING = {"spheres": _SPHERES, "neck": _NECK + _SPHERES}
_RADII = (
    "1/(inverse-I)",
    "1/(inverse-tanh(alpha*psi-beta*psi^2+gamma*psi^3)/radius); psi=I*scale",
    "1/(inverse-tanh(psi-beta*psi^2+gamma*psi^3)/radius); psi=I*scale",
    "1/(inverse-tanh(alpha*psi+gamma*psi^3)/radius); psi=I*scale",
)
_ATOM_ENERGIES = {
    "surface": "surface*(radius/B)^6",
    "charge": "charge/B",
    "salt": "front*(inside-exp(-kappa*B)/outside)*back/B",
}
_F = "f=sqrt(r^2+B1*B2*exp(-r^2/(4*B1*B2)))"
_PAIR_ENERGIES = {
    "charge": f"charge/f; {_F}",
    "salt": f"front*(inside-exp(-kappa*f)/outside)*back1*back2/f; {_F}",
}


def custom_gb(force: Any) -> Term:
    """The term of a CustomGBForce that is HCT, OBC1, OBC2, GBn or GBn2 as OpenMM writes them.

    Raises:
        UnsupportedForceError: an expression is not one of theirs.
    """
    if force.getNonbondedMethod() != force.NoCutoff:
        raise UnsupportedForceError("its nonbonded method is not NoCutoff")
    source = _Parameters.of(force)
    values = [force.getComputedValueParameters(i) for i in range(force.getNumComputedValues())]
    if [name for name, *_ in values] != ["I", "B"]:
        raise UnsupportedForceError("its computed values are not I, then B")
    (_, integral, integral_type), (_, radii, radii_type) = values
    if (integral_type, radii_type) != (force.ParticlePairNoExclusions, force.SingleParticle):
        raise UnsupportedForceError("I is not a sum over all pairs, or B not a value of one atom")
    energies = _Energies()
    for i in range(force.getNumEnergyTerms()):
        expression, kind = force.getEnergyTermParameters(i)
        if kind == force.SingleParticle:
            energies.add_atoms(source, expression)
        elif kind == force.ParticlePairNoExclusions or not force.getNumExclusions():
            energies.add_pairs(source, expression)
        else:
            raise UnsupportedForceError("an energy of pairs has exclusions")
    if energies.surface is None:
        energies.surface = source.zeros(), source.zeros()
    surface, radius = energies.surface
    return GeneralizedBorn(
        *_descreenings(source, integral),
        _radii(source, radii),
        energies.polarization(source),
        _tensor(radius),
        _tensor(surface),
    )


@dataclass(frozen=True)
class _Parameters:
    """The parameters of a force, in which the holes of a known form are evaluated."""

    n: int
    scalars: dict[str, Tensor]
    atoms: dict[str, Tensor]
    functions: dict[str, TabulatedFunction]

    @classmethod
    def of(cls, force: Any) -> _Parameters:
        n = force.getNumParticles()
        names = [
            force.getPerParticleParameterName(k) for k in range(force.getNumPerParticleParameters())
        ]
        table = np.array([force.getParticleParameters(i) for i in range(n)], dtype=float)
        scalars = {
            force.getGlobalParameterName(k): _tensor(force.getGlobalParameterDefaultValue(k))
            for k in range(force.getNumGlobalParameters())
        }
        functions = {
            force.getTabulatedFunctionName(k): tabulated(force.getTabulatedFunction(k))
            for k in range(force.getNumTabulatedFunctions())
        }
        atoms = dict(zip(names, _tensor(table.reshape(n, len(names))).unbind(1), strict=True))
        return cls(n, scalars, atoms, functions)

    def zeros(self) -> Array:
        return np.zeros(self.n)

    def match(self, pattern: str, expression: str, pairs: bool = False) -> dict[str, Array] | None:
        """Values of a pattern's holes, (n,) or (n, n), where it equals an expression."""
        form, tree = parse(pattern), _parsed(expression)
        known = self._of_pairs() if pairs else self.atoms
        values = {k: v for k, v in {**self.scalars, **known}.items() if k not in _VARIABLES}
        holes = names_in(form) - _VARIABLES
        found = unify(form, tree, holes, values)
        if found is None:
            return None
        return {hole: self._value(filling, values, pairs) for hole, filling in found.items()}

    def _of_pairs(self) -> dict[str, Tensor]:
        first = {f"{name}1": value[:, None] for name, value in self.atoms.items()}
        return first | {f"{name}2": value[None, :] for name, value in self.atoms.items()}

    def _value(self, tree: Tree, values: dict[str, Tensor], pairs: bool) -> Array:
        shape = (self.n, self.n) if pairs else (self.n,)
        try:
            value = evaluate(tree, values, self.functions)
        except ValueError as error:
            raise UnsupportedForceError(str(error)) from None
        return value.expand(shape).clone().numpy()


@dataclass
class _Energies:
    """The energies met so far, at most one of each kind."""

    surface: tuple[Array, Array] | None = None
    atoms: dict[str, Array] | None = None
    pairs: dict[str, Array] | None = None

    def add_atoms(self, source: _Parameters, expression: str) -> None:
        kind, found = _recognised(source, _ATOM_ENERGIES, expression, "an energy of atoms")
        if kind == "surface":
            _once(self.surface, "surface")
            self.surface = found["surface"], found["radius"]
        else:
            _once(self.atoms, "polarization of atoms")
            self.atoms = _charges(found)

    def add_pairs(self, source: _Parameters, expression: str) -> None:
        _, found = _recognised(source, _PAIR_ENERGIES, expression, "an energy of pairs", pairs=True)
        _once(self.pairs, "polarization of pairs")
        found["back"] = found.get("back1", np.ones(1)) * found.get("back2", np.ones(1))
        self.pairs = _charges(found)
        for name in ("charge", "salt"):
            table = self.pairs[name]
            symmetric = np.allclose(table, table.T, rtol=1e-12, atol=0.0)
            _check(symmetric, "an energy of pairs depends on their order")
            self.pairs[name] = 0.5 * (table + table.T)

    def polarization(self, source: _Parameters) -> Polarization:
        none = {"charge": source.zeros(), "salt": source.zeros()}
        atoms = self.atoms or none
        square = np.zeros((source.n, source.n))
        pairs = self.pairs or {"charge": square, "salt": square}
        kappas = {float(k) for e in (self.atoms, self.pairs) if e for k in e["kappa"].ravel()}
        _check(len(kappas) < 2, "kappa is not the same everywhere")
        kappa = kappas.pop() if kappas else 0.0
        return polarization(
            pairs["charge"], atoms["charge"], pairs["salt"], atoms["salt"], kappa=kappa
        )


def polarization(
    pairs: Array, atoms: Array, salt_pairs: Array, salt_atoms: Array, kappa: float
) -> Polarization:
    """Charges in water, or in salt water where there is some."""
    if kappa == 0.0:
        return Polarization(by_rows(_tensor(pairs - salt_pairs)), _tensor(atoms - salt_atoms))
    charge, salt_charge = (by_rows(_tensor(table)) for table in (pairs, salt_pairs))
    return SaltPolarization(
        charge, _tensor(atoms), salt_charge, _tensor(salt_atoms), _tensor(kappa)
    )


def _descreenings(source: _Parameters, expression: str) -> tuple[Descreening, Descreening]:
    kind, found = _recognised(source, _DESCREENING, expression, "I", pairs=True)
    inner, outer = _tensor(found["inner"]), _tensor(found["outer"])
    _check(bool((inner > 0).all()), "the radius of an atom is not positive")
    if kind == "spheres":
        return both_ways(UnburiedDescreening, inner, outer)
    depth = _tensor(2.0 * found["weight"] * found["depth"])
    square, sixth = (_tensor(_scalar(found[name], name)) for name in ("square", "sixth"))
    make = partial(NeckDescreening, square=square, sixth=sixth)
    return both_ways(make, inner, outer, depth, _tensor(found["peak"]), _tensor(found["reach"]))


def _radii(source: _Parameters, expression: str) -> BornRadii:
    forms = {form: form for form in _RADII}
    form, found = _recognised(source, forms, expression, "B")
    if form == _RADII[0]:
        return DirectRadii(_tensor(found["inverse"]))
    ones, zeros = np.ones(source.n), source.zeros()
    coefficients = found.get("alpha", ones), found.get("beta", zeros), found["gamma"]
    arrays = found["inverse"], found["scale"], found["radius"], *coefficients
    return RescaledRadii(*map(_tensor, arrays))


def _recognised(
    source: _Parameters, forms: dict[str, str], expression: str, what: str, pairs: bool = False
) -> tuple[str, dict[str, Array]]:
    """The first of some forms that an expression has, and what fills its holes."""
    for kind, form in forms.items():
        if (found := source.match(form, expression, pairs)) is not None:
            return kind, found
    raise UnsupportedForceError(
        f"{what} is not that of HCT, OBC1, OBC2, GBn or GBn2, but {expression!r}"
    )


def _charges(found: dict[str, Array]) -> dict[str, Array]:
    """Charge and salt of a polarization, and kappa."""
    if "charge" in found:
        zero = np.zeros_like(found["charge"])
        return {"charge": found["charge"], "salt": zero, "kappa": np.zeros(0)}
    factor = found["front"] * found["back"]
    return {
        "charge": factor * found["inside"],
        "salt": factor / found["outside"],
        "kappa": found["kappa"],
    }


def _once(found: object, what: str) -> None:
    _check(found is None, f"it has a second energy of {what}")


def _check(holds: bool, otherwise: str) -> None:
    if not holds:
        raise UnsupportedForceError(otherwise)


def _scalar(values: Array, name: str) -> Array:
    _check(bool((values == values.flat[0]).all()), f"{name} is not the same for all pairs")
    return np.asarray(values.flat[0])


def _tensor(array: Array | float) -> Tensor:
    return torch.from_numpy(np.array(array, dtype=np.float64))


def _parsed(expression: str) -> Tree:
    try:
        return parse(expression)
    except ValueError as error:
        raise UnsupportedForceError(str(error)) from None
