"""OpenMM's custom forces as terms: every function, every kind of force, against OpenMM itself."""

from __future__ import annotations

import copy
import dataclasses
import gzip
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import openmm
import pytest
import torch

from pyrocg.energies.compiled import CompiledEnergy, molecular_energy
from pyrocg.energies.contexts import BatchContext, ContextSetup
from pyrocg.energies.conversion import UnsupportedForceError, terms_of
from pyrocg.energies.custom import CustomBonds, CustomPairs
from pyrocg.energies.openmm import OpenMMEnergy
from pyrocg.energies.program import Program
from pyrocg.energies.splines import spline_slopes, tabulated
from pyrocg.energies.terms import Potential
from pyrocg.molecules import Molecule, alanine_dipeptide, peptide

N_ATOMS = 6
DATA = Path(__file__).parent / "data"

Make = Callable[[], openmm.Force]


def system_of(*forces: openmm.Force) -> openmm.System:
    system = openmm.System()
    for _ in range(N_ATOMS):
        system.addParticle(1.0)
    for force in forces:
        system.addForce(force)
    return system


def structures(spread: float, count: int = 20) -> np.ndarray:
    """A zigzag chain with noise: 0.02 nm is thermal, 0.2 nm overlapping and torn apart."""
    chain = np.array([[0.12 * i, 0.06 * (i % 2), 0.03 * (i % 3)] for i in range(N_ATOMS)])
    return chain + spread * np.random.default_rng(1).standard_normal((count, N_ATOMS, 3))


def potential_of(*forces: openmm.Force) -> Potential:
    return Potential.of(terms_of(system_of(*forces)), N_ATOMS)


def reference(force: openmm.Force, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    xml = openmm.XmlSerializer.serialize(system_of(force))
    energies, forces = BatchContext(ContextSetup(xml, "Reference", {})).evaluate(x, forces=True)
    assert forces is not None
    return energies, forces


def bond(expression: str) -> openmm.Force:
    force = openmm.CustomBondForce(expression)
    force.addPerBondParameter("k")
    force.addPerBondParameter("r0")
    force.addGlobalParameter("g", 2.5)
    force.addBond(0, 1, [3.0, 0.12])
    force.addBond(4, 1, [2.0, 0.2])
    force.addBond(2, 5, [1.5, 0.14])
    return force


def angle(expression: str) -> openmm.Force:
    force = openmm.CustomAngleForce(expression)
    force.addPerAngleParameter("k")
    force.addPerAngleParameter("t0")
    force.addAngle(0, 1, 2, [3.0, 1.2])
    force.addAngle(5, 2, 1, [2.5, 0.7])
    force.addAngle(3, 1, 0, [1.0, 2.0])
    return force


def torsion(expression: str) -> openmm.Force:
    force = openmm.CustomTorsionForce(expression)
    force.addPerTorsionParameter("k")
    force.addPerTorsionParameter("t0")
    force.addTorsion(0, 1, 2, 3, [3.0, 1.2])
    force.addTorsion(5, 2, 1, 4, [2.5, -2.7])
    force.addTorsion(3, 1, 0, 5, [1.0, 2.0])
    return force


def external(expression: str) -> openmm.Force:
    force = openmm.CustomExternalForce(expression)
    force.addPerParticleParameter("k")
    force.addGlobalParameter("g", -0.3)
    for i in (0, 3, 4):
        force.addParticle(i, [1.0 + i])
    return force


LENNARD_JONES = "4*0.7*((s/r)^12-(s/r)^6)+138.9*q1*q2/r; s=0.5*(sigma1+sigma2)"
GROUPS = [((0, 1, 2), (2, 3, 4)), ((0, 1, 5), (0, 1, 5)), ((3,), (1, 2)), ((3,), (2, 4))]


def pairs(
    expression: str, names: tuple[str, ...] = ("q", "sigma"), **tables: openmm.TabulatedFunction
) -> openmm.CustomNonbondedForce:
    """Two excluded pairs, and a global parameter."""
    force = openmm.CustomNonbondedForce(expression)
    force.addGlobalParameter("g", 1.3)
    for name in names:
        force.addPerParticleParameter(name)
    for name, table in tables.items():
        force.addTabulatedFunction(name, table)
    for i in range(N_ATOMS):
        row = {"q": 0.3 * (-1) ** i, "sigma": 0.2 + 0.02 * i, "type": i % 3}
        force.addParticle([row[name] for name in names])
    force.addExclusion(0, 1)
    force.addExclusion(4, 2)
    return force


def cut_off(force: openmm.CustomNonbondedForce, switch: float | None = None) -> openmm.Force:
    force.setNonbondedMethod(force.CutoffNonPeriodic)
    force.setCutoffDistance(0.4)
    if switch is not None:
        force.setUseSwitchingFunction(True)
        force.setSwitchingDistance(switch)
    return force


def grouped(force: openmm.CustomNonbondedForce) -> openmm.CustomNonbondedForce:
    for first, second in GROUPS:
        force.addInteractionGroup(first, second)
    return force


def computed_values() -> openmm.Force:
    force = pairs("a1*a2*b1*b2/r")
    force.addComputedValue("a", "q*sigma*g")
    force.addComputedValue("b", "2")
    return force


def nbfix() -> openmm.Force:
    """Lennard-Jones by pairs of types, as CHARMM's files have it."""
    numbers = np.random.default_rng(0).uniform(0.5, 1.5, (2, 3, 3))
    a, b = (n + n.T for n in numbers)
    return pairs(
        "acoef(type1, type2)/r^12 - bcoef(type1, type2)/r^6;",
        ("type",),
        acoef=openmm.Discrete2DFunction(3, 3, 1e-8 * a.ravel()),
        bcoef=openmm.Discrete2DFunction(3, 3, 1e-4 * b.ravel()),
    )


def compound(n: int, expression: str, **tables: openmm.TabulatedFunction) -> openmm.Force:
    force = openmm.CustomCompoundBondForce(n, expression)
    force.addPerBondParameter("k")
    force.addGlobalParameter("g", 0.3)
    for name, table in tables.items():
        force.addTabulatedFunction(name, table)
    force.addBond([0, 1, 2, 3][:n], [2.0])
    force.addBond([5, 3, 1, 0][:n], [3.0])
    return force


OF_DISTANCE = [
    *("0.5*k*(r-r0)^2", "sqrt(r+k)", "exp(-k*r)", "k*log(r)", "sin(k*r)", "cos(k*r)"),
    *("sec(r)", "csc(r)", "tan(r)", "cot(r)", "asin(r/10)", "acos(r/10)", "atan(k*r)"),
    *("atan2(r,k)", "atan2(k,r*r)", "atan2(g-r,g*r)", "sinh(k*r)", "cosh(k*r)", "tanh(k*r)"),
    *("erf(k*r)", "erfc(k*r)", "square(r)", "cube(k*r)", "recip(r+1)", "abs(r-r0)"),
    *("step(r-r0)*(r-r0)^2", "step(r0-0.13)/r", "delta(r)*r+r", "floor(20*r)*r", "ceil(20*r)*r"),
    *("min(r,r0)", "min(0.15,r)*k", "min(k,3)*r", "max(r*r,0.2*r)", "max(r,0.15)"),
    *("select(step(r-r0),r^2,3*r)", "select(floor(5*r),0.1,0.7)", "select(k-3,r,r^2)"),
    *("select(0,k,r)*r", "sqrt(select(1,4,r))+select(0,r,r0)", "log(max(2,select(g,3,r)))*r"),
    *("select(floor(5*r),0.1*r,0.7)", "select(1,r,k)", "select(step(r-r0),log(r-r0),r)"),
    *("select(2,r^2,log(r)*r)", "select(0,log(r)*r,r^2)"),
    *("r^-6-r^-3", "r^0.5+r^1.7", "k^r", "r^r", "r^k", "(r-0.2)^3", "r^0+r^1", "-r^2^-1"),
    *("r^12/(r^6+1)", "r^99", "5", "k", "g*r^2", "a*r; a=b*b; b=c+k; c=r"),
    "4*k*((s/r)^12-(s/r)^6); s=r0",
]
OF_ANGLE = [
    *("0.5*k*(theta-t0)^2", "k*(1+cos(3*theta-t0))", "theta", "3", "k*theta^3+t0*sin(theta)"),
    "k*min(dt,2*pi-dt)^2; dt=abs(theta-t0); pi=3.141592653589793",
]
OF_COORDINATES = [
    *("k*(x^2+y^2+z^2)", "x", "k", "g*x*y*z", "k*max(0,r-0.3)^2; r=sqrt(x*x+y*y+z*z)"),
    "k*select(step(x-y),x*z,y^3)",
]
OF_COMPOUNDS: list[tuple[int, str]] = [
    (3, "0.5*(k*(angle(p1,p2,p3)-g)^2+100*(distance(p1,p3)-0.2)^2)"),
    (3, "distance(p1,p2)^2+k*angle(p1,p2,p3)+x1*y3"),
    (4, "k*dihedral(p1,p2,p3,p4)^2*distance(p1,p3)+angle(p2,p1,p3)"),
    (4, "k*cos(dihedral(p4,p2,p1,p3)-dihedral(p1,p2,p3,p4))"),
    (3, "pointdistance(x1,y1,z1,(x2+x3)/2,(y2+y3)/2,(z2+z3)/2)^2+k"),
    (3, "pointangle(x1,y1,z1,x2,y2+0.01,z2,x3,y3,z3)"),
    (4, "k*pointdihedral(x1,y1,z1,x2,y2+0.01,z2,x3,y3,z3,0.5*(x4+x3),y4,z4)"),
    (2, "distance(p1,p2)*distance(p2,p1)+g"),
    (2, "x1^2+min(y2,0.1)+select(step(z1),erf(z1),floor(z2))"),
    (2, "k"),
]


def grid(*sizes: int, periodic: bool = False) -> list[float]:
    """Random numbers for a table, the first dimension fastest; the last repeats the first."""
    values = np.random.default_rng(len(sizes)).normal(size=sizes)
    for axis in range(len(sizes)) if periodic else ():
        np.moveaxis(values, axis, 0)[-1] = np.moveaxis(values, axis, 0)[0]
    return values.T.ravel().tolist()


TABLES: dict[str, tuple[str, Callable[[], openmm.TabulatedFunction]]] = {
    "1d": ("f(r)*r^2+f(0.1)", lambda: openmm.Continuous1DFunction(grid(13), 0.05, 0.35)),
    "1d-periodic": (
        "f(r)+f(-k*r)",
        lambda: openmm.Continuous1DFunction(grid(9, periodic=True), 0.05, 0.65, True),
    ),
    "1d-of-two": ("f(r)", lambda: openmm.Continuous1DFunction([1.0, 4.0], 0.05, 0.5)),
    "1d-of-three": ("f(r)", lambda: openmm.Continuous1DFunction([1.0, 4.0, -1.0], 0.05, 0.5)),
    "2d": (
        "f(r,k+r)+f(0.3,1.1)",
        lambda: openmm.Continuous2DFunction(5, 7, grid(5, 7), 0.0, 0.4, 1.0, 3.0),
    ),
    "2d-periodic": (
        "f(r,3*r)",
        lambda: openmm.Continuous2DFunction(
            5, 7, grid(5, 7, periodic=True), 0.0, 0.17, 1.0, 1.5, True
        ),
    ),
    "3d": (
        "f(r,k-r,r)",
        lambda: openmm.Continuous3DFunction(
            *(4, 5, 6), grid(4, 5, 6), *(0.0, 0.4), *(1.0, 3.0), *(-1.0, 1.0)
        ),
    ),
    "3d-periodic": (
        "f(r,k,4*r)",
        lambda: openmm.Continuous3DFunction(
            *(4, 5, 6), grid(4, 5, 6, periodic=True), *(0.0, 0.2), *(1.0, 1.5), *(-1.0, 0.1), True
        ),
    ),
    "discrete": ("f(10*r)*r", lambda: openmm.Discrete1DFunction(grid(99))),
    "discrete-2d": ("f(k-1,4*r)*r", lambda: openmm.Discrete2DFunction(3, 9, grid(3, 9))),
    "discrete-3d": ("f(0,1,k-1)*r", lambda: openmm.Discrete3DFunction(2, 2, 3, grid(2, 2, 3))),
}


def of_table(name: str) -> openmm.Force:
    expression, table = TABLES[name]
    return compound(2, f"{expression}; r=distance(p1,p2)", f=table())


FORCES: dict[str, Make] = {
    **{f"bond {e}": partial(bond, e) for e in OF_DISTANCE},
    **{f"angle {e}": partial(angle, e) for e in OF_ANGLE},
    **{f"torsion {e}": partial(torsion, e) for e in OF_ANGLE},
    **{f"external {e}": partial(external, e) for e in OF_COORDINATES},
    **{f"compound {e}": partial(compound, n, e) for n, e in OF_COMPOUNDS},
    **{f"table {name}": partial(of_table, name) for name in TABLES},
    "pairs": lambda: pairs(LENNARD_JONES),
    "pairs cut off": lambda: cut_off(pairs(LENNARD_JONES)),
    "pairs switched": lambda: cut_off(pairs(LENNARD_JONES), 0.25),
    "groups": lambda: grouped(pairs(LENNARD_JONES)),
    "groups switched": lambda: cut_off(grouped(pairs(LENNARD_JONES)), 0.25),
    "groups, order matters": lambda: grouped(pairs("q1*r+sigma2*r^2")),
    "asymmetric words": lambda: pairs("q1*exp(-sigma2*r)+q2*exp(-sigma1*r)"),
    "computed values": computed_values,
    "nbfix": nbfix,
    "pairs without parameters": lambda: pairs("exp(-r)", ()),
    "pairs without distance": lambda: pairs("g", ()),
}


@pytest.mark.parametrize("name", FORCES)
def test_a_force_agrees_with_openmm(name):
    potential = potential_of(FORCES[name]())
    for spread in (0.02, 0.05, 0.2):
        x = structures(spread)
        energies, forces = reference(FORCES[name](), x)
        energy, gradient = potential.energy_and_gradient(torch.tensor(x))
        defined = np.isfinite(energies)
        assert (np.isfinite(energy.numpy()) == defined).all()
        assert defined.sum() >= 10
        energies, forces, energy = energies[defined], forces[defined], energy.numpy()[defined]
        scale = np.abs(forces).max(axis=(1, 2))
        np.testing.assert_allclose(energy, energies, rtol=1e-9, atol=1e-12 * (1 + scale.max()))
        error = np.abs(gradient.numpy()[defined] + forces).max(axis=(1, 2))
        assert (error <= 1e-10 * (scale + 1e-3)).all()


@pytest.mark.parametrize("name", [n for n in FORCES if "log(r-r0)" not in n and "r^99" not in n])
def test_single_precision_is_close_on_thermal_structures(name):
    potential = potential_of(FORCES[name]())
    x = torch.tensor(structures(0.005))
    exact, exact_gradient = potential.energy_and_gradient(x)
    single = potential.to(torch.float32, torch.device("cpu"))
    energy, gradient = single.energy_and_gradient(x.float())
    assert energy.dtype == gradient.dtype == torch.float32
    scale = exact_gradient.abs().amax(dim=(1, 2)) + exact.abs() + 0.1
    # a jump may lie between a number and its rounding
    smooth = (energy - exact).abs() <= 1e-5 * scale
    assert smooth.float().mean() >= (0.9 if "floor" in name or "ceil" in name else 1.0)
    error = (gradient - exact_gradient).abs().amax(dim=(1, 2))
    assert (error <= 3e-5 * scale)[smooth].all()


@pytest.mark.parametrize("name", FORCES)
def test_nan_positions_give_nan(name):
    x = torch.tensor(structures(0.02, 2))
    x[1, 3, 2] = math.nan
    energy, gradient = potential_of(FORCES[name]()).energy_and_gradient(x)
    assert torch.isnan(energy)[1]
    assert torch.isfinite(gradient[0]).all() or "log" in name


def test_compiled_and_eager_are_the_same():
    every = "+".join(e for e in OF_DISTANCE if ";" not in e and e[0] not in "5-")
    potential = potential_of(bond(every), nbfix())
    x = torch.tensor(structures(0.005, 48))
    eager, compiled = (Program(potential, x.dtype, x.device, c) for c in (False, True))
    for expected, result in zip(eager(x), compiled(x), strict=True):
        torch.testing.assert_close(result, expected, rtol=1e-12, atol=1e-9)
    assert compiled._threaded  # not the fallback


def test_what_depends_on_parameters_alone_is_computed_once():
    (term,) = terms_of(system_of(pairs(LENNARD_JONES)))
    assert isinstance(term, CustomPairs)
    assert len(term.formula.tables) == 2  # s, and the product of Coulomb's constant and charges
    (term,) = terms_of(system_of(bond("(2*g+1)*r^2")))
    assert isinstance(term, CustomBonds)
    assert term.formula.tables == ()  # the same for all bonds: a number


def test_kinks_and_jumps_are_differentiated_as_openmm_does():
    """At the very place: a distance of 1 nm."""
    for expression in (
        *("abs(r-1)", "abs(1-r)", "min(r,1)", "min(1,r)", "max(r,1)", "max(1,r)"),
        *("step(r-1)*r", "step(1-r)*r", "delta(r-1)*r", "floor(r)*r", "ceil(r)*r"),
        *(
            "select(r-1,r,2*r)",
            "select(1-step(r-1),1/(r-1),r)",
        ),
    ):
        force = openmm.CustomBondForce(expression)
        force.addBond(0, 1)
        x = np.zeros((1, N_ATOMS, 3))
        x[:, 1, 0] = 1.0
        potential = potential_of(copy.deepcopy(force))
        energies, forces = reference(force, x)
        energy, gradient = potential.energy_and_gradient(torch.tensor(x))
        np.testing.assert_array_equal(energy, energies, err_msg=expression)
        np.testing.assert_array_equal(-gradient, forces, err_msg=expression)


def test_overlapping_atoms_are_infinite_or_finite_as_in_openmm():
    for expression in ("1/r", "r^-12-r^-6", "(r-0.1)^2", "log(r)", "select(r,1/r,3)"):
        x = structures(0.02, 3)
        x[1, 1] = x[1, 4]
        energies, forces = reference(bond(expression), x)
        potential = potential_of(bond(expression))
        energy, gradient = potential.energy_and_gradient(torch.tensor(x))
        np.testing.assert_allclose(energy, energies, rtol=1e-9)
        np.testing.assert_allclose(-gradient, forces, rtol=1e-9, atol=1e-9)
    force = grouped(pairs(LENNARD_JONES))
    energy, gradient = potential_of(force).energy_and_gradient(torch.tensor(x))
    assert torch.isfinite(energy).tolist() == [True, False, True]
    assert torch.isfinite(gradient[::2]).all()


def test_a_quotient_by_zero_is_infinite():
    energy, gradient = potential_of(bond("r/(k-k)")).energy_and_gradient(
        torch.tensor(structures(0.02, 3))
    )
    assert (energy == math.inf).all()
    assert not torch.isfinite(gradient[:, :2]).any()


def test_an_order_that_matters_only_far_away_is_that_of_openmm():
    """Beyond the distances at which the order of pairs is asked for."""
    force = pairs("select(step(r-2.5),q1+2*sigma2,q1*q2)*r")
    for scale in (1.0, 20.0):
        x = scale * structures(0.02, 3)
        energies, forces = reference(copy.deepcopy(force), x)
        energy, gradient = potential_of(copy.deepcopy(force)).energy_and_gradient(torch.tensor(x))
        np.testing.assert_allclose(energy, energies, rtol=1e-12)
        np.testing.assert_allclose(-gradient, forces, atol=1e-10)


def test_outside_of_a_discrete_table_there_is_no_energy():
    table = openmm.Discrete1DFunction([1.0, 2.0])
    force = compound(2, "f(10*distance(p1,p2))", f=table)
    x = np.zeros((2, N_ATOMS, 3))
    x[:, 1, 0] = x[:, 3, 0] = 0.1
    x[1, 1, 0] = 0.3
    energy, _ = potential_of(force).energy_and_gradient(torch.tensor(x))
    assert energy[0] == 4.0
    assert torch.isnan(energy[1])


def test_splines_reproduce_their_grid_and_straight_lines():
    values = grid(8)
    spline = tabulated(openmm.Continuous1DFunction(values, -1.0, 6.0))
    points = torch.arange(-1.0, 6.5).double()
    value, _ = spline(points)
    torch.testing.assert_close(value, torch.tensor(values, dtype=torch.float64))
    line = 3.0 * np.arange(5.0)[:, None] - 2.0
    np.testing.assert_allclose(spline_slopes(line, periodic=False), 3.0, rtol=1e-14)


def unknown_particle() -> openmm.Force:
    return compound(2, "distance(p1,p3)")


def periodic_distance() -> openmm.Force:
    return external("periodicdistance(x,y,z,0,0,0)^2")


def periodic_cutoff() -> openmm.Force:
    force = pairs(LENNARD_JONES)
    force.setNonbondedMethod(force.CutoffPeriodic)
    return force


def periodic_bond() -> openmm.Force:
    force = bond("r^2")
    force.setUsesPeriodicBoundaryConditions(True)
    return force


def off_the_table() -> openmm.Force:
    return pairs("f(type1+type2)*r", ("type",), f=openmm.Discrete1DFunction([1.0, 2.0]))


def two_meanings(name: str) -> openmm.Force:
    force = openmm.CustomCompoundBondForce(2, "distance(p1,p2)+x1+r")
    force.addPerBondParameter(name)
    force.addGlobalParameter("r", 1.0)
    force.addBond([0, 1], [2.0])
    return force


def two_meanings_of_a_global_parameter() -> openmm.Force:
    force = openmm.CustomBondForce("r^2")
    force.addGlobalParameter("r", 1.0)
    force.addBond(0, 1)
    return force


def wrong_computed_value() -> openmm.Force:
    force = pairs("a1*a2*r")
    force.addComputedValue("a", "missing")
    return force


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (partial(bond, "r^2+"), "CustomBondForce .force 1.: expected an expression, got 'the end'"),
        (partial(bond, "gamma(r)"), "CustomBondForce .force 1.: .*got 'gamma' of 1 arguments"),
        (partial(angle, "k*r"), "CustomAngleForce .force 1.: expected a variable .*got 'r'"),
        (partial(pairs, "q1*r+q2*r^2"), "CustomNonbondedForce .force 1.: .*depends on the order"),
        (wrong_computed_value, "CustomNonbondedForce .force 1.: .*got 'missing'"),
        (off_the_table, "CustomNonbondedForce .force 1.: an index .* is outside of its table"),
        (partial(two_meanings, "x1"), "CustomCompoundBondForce .force 1.: 'x1' is a parameter and"),
        (two_meanings_of_a_global_parameter, "CustomBondForce .force 1.: 'r' is a parameter and"),
        (unknown_particle, "CustomCompoundBondForce .force 1.: distance is not of 2 of the"),
        (partial(compound, 2, "pointdistance(x1,y1)"), "pointdistance has not 6 arguments"),
        (periodic_distance, "CustomExternalForce .force 1.: it uses periodic boundary"),
        (periodic_cutoff, "CustomNonbondedForce .force 1.: it uses periodic boundary"),
        (periodic_bond, "CustomBondForce .force 1.: it uses periodic boundary"),
    ],
)
def test_what_is_not_covered_is_refused_by_class_and_index(make, reason):
    with pytest.raises(UnsupportedForceError, match=reason):
        terms_of(system_of(openmm.HarmonicBondForce(), make()))


@pytest.mark.parametrize("name", ["Bond", "Angle", "Torsion", "External", "CompoundBond"])
def test_a_force_without_members_leaves_no_term(name):
    count = (2,) if name == "CompoundBond" else ()
    assert terms_of(system_of(getattr(openmm, f"Custom{name}Force")(*count, "1"))) == ()


@pytest.mark.parametrize("groups", [[], [((0, 1), (2, 3))]])
def test_pairs_that_are_all_excluded_leave_no_term(groups):
    force = openmm.CustomNonbondedForce("1/r")
    for i in range(N_ATOMS):
        force.addParticle([])
        for j in range(i):
            force.addExclusion(i, j)
    for first, second in groups:
        force.addInteractionGroup(first, second)
    assert terms_of(system_of(force)) == ()


def test_a_force_whose_energy_has_no_value_somewhere_is_still_compiled():
    molecule = alanine_dipeptide()
    system = openmm.XmlSerializer.clone(molecule.system)
    force = openmm.CustomBondForce("log(r-0.105)")  # of a bond of 0.11 nm
    force.addBond(0, 1)
    system.addForce(force)
    energy = molecular_energy(dataclasses.replace(molecule, system=system))
    assert isinstance(energy, CompiledEnergy)


def charmm(name: str, molecule: Molecule) -> Molecule:
    """A molecule with the System that OpenMM 8.6 builds for it from CHARMM's files."""
    xml = gzip.decompress((DATA / f"{name}.xml.gz").read_bytes()).decode()
    return dataclasses.replace(molecule, system=openmm.XmlSerializer.deserialize(xml))


CHARMM: dict[str, Callable[[], Molecule]] = {
    "ace-ala-nme_charmm36_gbn2": lambda: charmm("ace-ala-nme_charmm36_gbn2", alanine_dipeptide()),
    "ala-gly_charmm36": lambda: charmm("ala-gly_charmm36", peptide("AG", caps=False)),
}


@pytest.mark.parametrize("name", CHARMM)
def test_charmm_is_compiled_and_is_openmm(name):
    molecule = CHARMM[name]()
    forces = {type(force).__name__ for force in molecule.system.getForces()}
    assert {"CustomNonbondedForce", "CustomBondForce", "CMAPTorsionForce"} <= forces
    energy = CompiledEnergy(molecule, compile=False)
    engine = OpenMMEnergy(molecule, platform="Reference", workers=1)
    noise = np.random.default_rng(0).standard_normal((4, molecule.n_atoms, 3))
    for spread in (0.003, 0.03, 0.3):
        x = torch.tensor(molecule.positions + spread * noise)
        expected, forces = engine.energy_and_forces(x.numpy())
        result, gradient = energy._evaluate(x)
        scale = np.abs(forces).max(axis=(1, 2))
        np.testing.assert_allclose(result, expected, rtol=1e-9, atol=1e-12 * scale.max())
        error = np.abs(gradient.numpy() + forces).max(axis=(1, 2))
        assert (error <= 1e-10 * scale).all()
    x = torch.tensor(molecule.positions + 0.003 * noise)
    exact, exact_gradient = energy._evaluate(x)
    single, single_gradient = energy._evaluate(x.float())
    torch.testing.assert_close(single.double(), exact, rtol=1e-5, atol=1e-3)
    scale = exact_gradient.abs().amax(dim=(0, 1))
    assert ((single_gradient - exact_gradient).abs().amax(dim=(0, 1)) <= 1e-5 * scale).all()
