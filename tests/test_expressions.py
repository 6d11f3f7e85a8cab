"""Lepton expressions: precedence, definitions, comparison with known forms, and their errors."""

from __future__ import annotations

import numpy as np
import openmm
import pytest

from pyrocg.energies.expressions import Call, Name, Number, evaluate, names_in, parse, unify

VALUES = {"x": 0.7, "y": -1.3, "z": 2.0}
EXPRESSIONS = [
    "1",
    "1.5e-2*x",
    ".5+x",
    "1-2-3",
    "8/4/2",
    "2^3^2",
    "-x^2",
    "-2^-2",
    "2^-x",
    "2*-y",
    "x*-y^2",
    "--y",
    "1-2*x^2/(z-y)",
    "sqrt(abs(y))+exp(x)*log(z)",
    "min(x,y)*max( x , z )",
    "a*x; a=b+1; b=y^2",
    "b; c=2; b=x+y;",
]


@pytest.mark.parametrize("text", EXPRESSIONS)
def test_values_are_those_of_openmm(text):
    force = openmm.CustomCVForce(text)
    for name, value in VALUES.items():
        force.addGlobalParameter(name, value)
    system = openmm.System()
    system.addParticle(1.0)
    system.addForce(force)
    platform = openmm.Platform.getPlatformByName("Reference")
    context = openmm.Context(system, openmm.VerletIntegrator(0.001), platform)
    context.setPositions([(0, 0, 0)])
    expected = context.getState(getEnergy=True).getPotentialEnergy()._value
    values = {name: np.asarray(value) for name, value in VALUES.items()}
    assert float(evaluate(parse(text), values, {})) == pytest.approx(expected, rel=1e-14)


def test_a_tree_by_hand():
    tree = parse("-a*b^2; b=c")
    power = Call("^", (Name("c"), Number(2.0)))
    assert tree == Call("*", (Call("-", (Name("a"),)), power))
    assert names_in(tree) == {"a", "c"}


@pytest.mark.parametrize(
    "text", ["", "1+", "(x", "x)", "x y", "2*$", "f(x", "f()", "x; y", "x; =2", "1..2"]
)
def test_what_is_no_expression_is_refused(text):
    with pytest.raises(ValueError, match="expected"):
        parse(text)


def test_holes_are_filled_consistently():
    pattern, holes = parse("scale/r+scale*r^2"), {"scale"}
    found = unify(pattern, parse("s/r+s*r^2; s=2*q"), holes, {"q"})
    assert found == {"scale": parse("2*q")}
    assert unify(pattern, parse("q/r+2*r^2"), holes, {"q"}) is None
    assert unify(pattern, parse("r/r+r*r^2"), holes, {"q"}) is None
    assert unify(pattern, parse("q/r+q*r^3"), holes, {"q"}) is None


def test_unknown_functions_and_variables_are_named():
    with pytest.raises(ValueError, match="known function, got 'erfc'"):
        evaluate(parse("erfc(2)"), {}, {})
    with pytest.raises(KeyError, match="q"):
        evaluate(parse("q"), {}, {})
    doubled = evaluate(parse("twice(3)"), {}, {"twice": lambda a: 2 * a})
    assert float(doubled) == 6.0
