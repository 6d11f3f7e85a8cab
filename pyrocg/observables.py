"""Observables: functions of configurations whose equilibrium averages are predicted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = [
    "Observable",
    "coordinate",
    "double_well_observables",
    "population",
    "population_above",
    "window",
]

Array: TypeAlias = NDArray[np.float64]


@dataclass(frozen=True)
class Observable:
    """A named function of configurations.

    Args:
        name: key of the observable in every result.
        unit: unit of the values; ``"rad"`` for angles, ``""`` for populations.
        function: maps configurations ``(n, *event_shape)``, in nm for a molecule, to ``(n,)``.
        circular: whether values are angles in rad, equal modulo 2 pi.

    Example:
        >>> import numpy as np
        >>> height = Observable("height", "nm", lambda x: x[:, :, 2].max(axis=1))
        >>> height(np.zeros((2, 5, 3)))
        array([0., 0.])
    """

    name: str
    unit: str
    function: Callable[[Any], Any]
    circular: bool = False

    def __post_init__(self) -> None:
        if not self.name or not callable(self.function):
            raise TypeError(
                "expected a name and a function of configurations, "
                f"got {self.name!r} and {type(self.function).__name__}; "
                "write Observable('name', 'unit', function)"
            )

    def __call__(self, positions: ArrayLike) -> Array:
        """Values ``(n,)``, float64, of configurations ``(n, *event_shape)``.

        Raises:
            TypeError: the configurations are not floating-point numbers.
            ValueError: there are none, or the function does not return one value for each.
        """
        x = np.asarray(positions)
        if not np.issubdtype(x.dtype, np.floating):
            raise TypeError(
                f"expected floating-point configurations, got {x.dtype}; "
                "convert them, for instance with x.astype(float)"
            )
        if x.ndim < 2 or len(x) == 0:
            raise ValueError(
                "expected configurations of shape (n, *event_shape) with n of 1 or more, "
                f"got {x.shape}; pass one configuration as x[None]"
            )
        values = np.asarray(self.function(x), dtype=np.float64)
        if values.shape != (len(x),):
            raise ValueError(
                f"expected observable {self.name!r} to return shape ({len(x)},), "
                f"got {values.shape}; return one number for each configuration"
            )
        return values


def population(name: str, predicate: Callable[[Any], Any]) -> Observable:
    """The indicator of a set of configurations; its mean is the probability of the set.

    Args:
        name: key in the results.
        predicate: maps configurations ``(n, *event_shape)`` to ``(n,)`` bool.

    Raises:
        TypeError: when called, the predicate returns no bool.
    """

    def values(x: Array) -> Array:
        inside = np.asarray(predicate(x))
        if inside.dtype != np.bool_:
            raise TypeError(
                f"expected the predicate of {name!r} to return bool, got {inside.dtype}; "
                "compare the value with a threshold"
            )
        return inside.astype(np.float64)

    return Observable(name, "", values)


def window(name: str, *ranges: tuple[Observable, float, float]) -> Observable:
    """The population of the configurations whose observables all lie in open intervals.

    Args:
        name: key in the results.
        ranges: one or more of (observable, low, high), in the observable's unit. The interval of an
            angle goes upwards from low to high, also across pi.

    Raises:
        ValueError: there are no ranges, or an interval is empty or more than a turn.

    Example:
        >>> import numpy as np
        >>> angle = Observable("angle", "rad", lambda x: x[:, 0], circular=True)
        >>> window("trans", (angle, 3.0, 3.3))(np.array([[3.1], [-3.1], [0.0]]))
        array([1., 1., 0.])
    """
    for observable, low, high in ranges:
        if not low < high or (observable.circular and high - low > 2 * np.pi):
            raise ValueError(
                f"expected an interval of {observable.name} with low below high, of an angle at "
                f"most a turn, got {low} to {high}"
            )
    if not ranges:
        raise ValueError(f"expected one or more ranges for {name!r}, got none")

    def inside(x: Array) -> Any:
        found = []
        for observable, low, high in ranges:
            above = observable(x) - low
            above = above % (2 * np.pi) if observable.circular else above
            found.append((above > 0) & (above < high - low))
        return np.all(found, axis=0)

    return population(name, inside)


def population_above(
    threshold: float, index: int = 0, name: str = "population_right"
) -> Observable:
    """Probability that coordinate ``index`` of a toy system lies above ``threshold``.

    Raises:
        ValueError: when called, configurations without such a coordinate.

    Example:
        >>> import numpy as np
        >>> population_above(0.167)(np.array([[1.0, 0.0], [-2.0, 0.0]]))
        array([1., 0.])
    """
    component = coordinate(index)
    return population(name, lambda x: component(x) > threshold)


def coordinate(index: int, name: str | None = None, unit: str = "") -> Observable:
    """Coordinate ``index`` (0-based) of configurations ``(n, dim)``; named x1, x2, ...

    Raises:
        ValueError: when called, configurations without such a coordinate.
    """

    def values(x: Array) -> Array:
        if x.ndim != 2 or not 0 <= index < x.shape[1]:
            raise ValueError(
                f"expected configurations of shape (n, dim) with dim above {index}, "
                f"got {x.shape}; an index counts from 0"
            )
        return x[:, index]

    return Observable(name or f"x{index + 1}", unit, values)


def double_well_observables(threshold: float = 0.167) -> tuple[Observable, ...]:
    """x1, x2 and P(x1 > threshold), the barrier of the paper's double well."""
    return coordinate(0), coordinate(1), population_above(threshold)
