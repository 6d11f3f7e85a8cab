"""Lepton expressions: precedence, definitions, comparison with known forms, and their errors."""

from __future__ import annotations

import platform

import openmm
import pytest
import torch

from pyrocg.energies.expressions import Call, Name, Number, names_in, parse, substitute, unify
from pyrocg.energies.formulas import Formula, evaluate

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
    "a+a*b; a=b^2; b=c-1; c=x*c; c=y",
    "x -y- -z",
    "sqrt( square(y) + cube(x) )*recip(z)+sin(x)/sec(y)-csc(z)^cos(x)",
    "tan(x)+cot(y)+asin(x)-acos(x)*atan(z)+atan2(y,x)+sinh(y)*cosh(x)/tanh(z)",
    "erf(x)+erfc(y)+step(x)-step(y)+delta(x)+delta(0)+step(0)",
    "floor(y)+ceil(y)*floor(x)+abs(x)+select(step(y),x,z)+select(x,y,log(y))",
    "sqrt(select(1,4,x))+exp(select(0,x,2))*select(2,y,1)",
]


def of_openmm(text):
    force = openmm.CustomCVForce(text)
    for name, value in VALUES.items():
        force.addGlobalParameter(name, value)
    system = openmm.System()
    system.addParticle(1.0)
    system.addForce(force)
    platform = openmm.Platform.getPlatformByName("Reference")
    context = openmm.Context(system, openmm.VerletIntegrator(0.001), platform)
    context.setPositions([(0, 0, 0)])
    return context.getState(getEnergy=True).getPotentialEnergy()._value


def of_formula(text):
    """With every name a parameter, and with every name a variable, whose steps run when called."""
    values = {name: torch.tensor(v, dtype=torch.float64) for name, v in VALUES.items()}
    formula = Formula.of(parse(text), list(VALUES), {})
    result, _ = formula({name: v.expand(1, 2) for name, v in values.items()})
    assert result.shape == (1, 2)
    return [float(evaluate(parse(text), values)), *result[0].tolist()]


@pytest.mark.parametrize("text", EXPRESSIONS)
def test_values_are_those_of_openmm(text):
    assert of_formula(text) == pytest.approx([of_openmm(text)] * 3, rel=1e-14)


@pytest.mark.skipif(platform.machine() != "x86_64", reason="OpenMM has other code there")
@pytest.mark.parametrize(
    "text", ["min(log(y),x)", "max(log(y),x)", "min(x,log(y))", "max(x,log(y))"]
)
def test_minima_and_maxima_of_nan_are_those_of_openmm(text):
    assert of_formula(text) == pytest.approx([of_openmm(text)] * 3, nan_ok=True)


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


def test_calls_are_replaced_from_the_inside_and_shared_parts_once():
    seen = []

    def replace(call):
        seen.append(call)
        return Number(len(call.arguments)) if call.function == "f" else None

    tree = substitute(parse("a+a; a=f(f(x),2)^y"), replace)
    assert tree == parse("a+a; a=2^y")
    assert [call.function for call in seen] == ["f", "f", "^", "+"]


def test_definitions_from_outside_and_definitions_of_definitions_stay_small():
    assert parse("a*b; b=a", {"a": Number(3.0)}) == parse("3*3")
    doubled = ";".join(f"a{k}=a{k + 1}+a{k + 1}" for k in range(60))
    tree = parse(f"a0;{doubled};a60=x")
    assert names_in(tree) == {"x"}
    formula = Formula.of(substitute(tree, lambda call: None), ["x"], {})
    assert len(formula.steps) == 61
    value, slopes = formula({"x": torch.ones(1, 1).double()})
    assert value.item() == slopes["x"].item() == 2.0**60


def test_unknown_functions_and_variables_are_named():
    with pytest.raises(ValueError, match="known function, got 'gamma' of 1"):
        evaluate(parse("gamma(2)"), {})
    with pytest.raises(ValueError, match="known function, got 'min' of 3"):
        Formula.of(parse("min(r,2,3)"), ["r"], {})
    with pytest.raises(ValueError, match="a variable or a parameter, got 'q'"):
        evaluate(parse("q"), {})
