"""What an observable is, and those of coordinates alone; what is refused."""

import numpy as np
import pytest

from pyrocg.observables import (
    Observable,
    coordinate,
    double_well_observables,
    population,
    population_above,
    window,
)


def test_population_needs_a_boolean_predicate():
    inside = population("inside", lambda y: np.abs(y).max(axis=1) < 1)
    np.testing.assert_array_equal(inside(np.array([[0.5, -0.5], [2.0, 0.0]])), [1.0, 0.0])
    assert inside.unit == ""
    with pytest.raises(TypeError, match="'bad' to return bool, got float64; compare"):
        population("bad", lambda y: y[:, 0])(np.zeros((2, 2)))


def test_window_is_open_and_periodic():
    x1 = coordinate(0)
    angle = Observable("angle", "rad", lambda y: y[:, 1], circular=True)
    values = np.array([[0.0, 3.0], [0.5, -3.0], [1.0, 3.2 - 4 * np.pi], [0.5, 2.0], [0.5, -2.0]])
    across = window("across", (x1, 0.0, 1.5), (angle, 2.9, 3.4))
    np.testing.assert_array_equal(across(values), [0, 1, 1, 0, 0])  # 0 is the edge of x1
    np.testing.assert_array_equal(window("low", (angle, -2.5, 2.5))(values), [0, 0, 0, 1, 1])


@pytest.mark.parametrize(("low", "high"), [(1.0, 1.0), (2.0, 1.0), (-4.0, 4.0)])
def test_window_refuses_empty_and_long_intervals(low, high):
    angle = Observable("angle", "rad", lambda y: y[:, 0], circular=True)
    with pytest.raises(ValueError, match="expected an interval of angle with low below high"):
        window("bad", (angle, low, high))
    with pytest.raises(ValueError, match="expected one or more ranges for 'none'"):
        window("none")


# Toy systems.


def test_double_well_observables():
    y = np.array([[1.0, 5.0], [0.167, -1.0], [-2.0, 0.0], [0.168, 0.0]])
    first, second, right = double_well_observables()
    assert [o.name for o in (first, second, right)] == ["x1", "x2", "population_right"]
    np.testing.assert_array_equal(first(y), y[:, 0])
    np.testing.assert_array_equal(second(y), y[:, 1])
    np.testing.assert_array_equal(right(y), [1.0, 0.0, 0.0, 1.0])
    np.testing.assert_array_equal(population_above(0.5, 1, "up")(y), [1.0, 0.0, 0.0, 0.0])


@pytest.mark.parametrize("index", [2, -1])
def test_missing_coordinate(index):
    with pytest.raises(ValueError, match=rf"dim above {index}, got \(3, 2\)"):
        coordinate(index)(np.zeros((3, 2)))


# The contract of every observable.


def test_any_callable_becomes_an_observable():
    x = np.random.default_rng(0).normal(size=(7, 5, 3))
    height = Observable("height", "nm", lambda frames: frames[:, :, 2].max(axis=1))
    values = height(x.astype(np.float32))
    assert values.dtype == np.float64
    np.testing.assert_allclose(values, x[:, :, 2].max(axis=1))
    assert not height.circular


@pytest.mark.parametrize("shape", [(3, 1), (1,), ()])
def test_a_function_of_the_wrong_shape_is_refused(shape):
    broken = Observable("broken", "", lambda y: np.zeros(shape))
    with pytest.raises(ValueError, match=r"'broken' to return shape \(3,\), got"):
        broken(np.zeros((3, 2)))


@pytest.mark.parametrize("shape", [(0, 2), (3,), ()])
def test_empty_or_flat_configurations_are_refused(shape):
    with pytest.raises(ValueError, match=r"n of 1 or more, got .* x\[None\]"):
        coordinate(0)(np.zeros(shape))


def test_integer_configurations_are_refused():
    with pytest.raises(TypeError, match="floating-point configurations, got int64; convert"):
        coordinate(0)(np.zeros((3, 2), dtype=np.int64))


@pytest.mark.parametrize(("name", "function"), [("", len), ("x", 3.0)])
def test_an_observable_needs_a_name_and_a_function(name, function):
    with pytest.raises(TypeError, match="expected a name and a function"):
        Observable(name, "", function)
