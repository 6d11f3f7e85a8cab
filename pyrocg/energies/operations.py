"""The functions of OpenMM's expressions on tensors, each with its derivative.

Where a function has a kink or a jump, value and derivative are those of OpenMM: ``step(0)`` is 1,
jumps have no derivative, that of ``abs`` at 0 is 1, and ``select`` differentiates one branch only.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias

import torch
from torch import Tensor

__all__ = ["Dual", "Value", "apply", "chain", "is_known"]

Value: TypeAlias = Tensor | float
"""A number for every row and configuration, or the same one for all."""
_LONGEST_PRODUCT = 64
"""Integer powers up to here are products, which are faster than logarithms."""
_PER_ERF = 2.0 / math.sqrt(math.pi)


@dataclass(frozen=True, eq=False)
class Dual:
    """A value and its derivatives by the variables that it depends on."""

    value: Value
    slopes: dict[str, Value]


def is_known(function: str, n_arguments: int) -> bool:
    """Whether there is an operator or a function of that name and number of arguments."""
    return (function, n_arguments) in _CHOICES or (function, n_arguments) in _SMOOTH


def apply(function: str, arguments: Sequence[Dual]) -> Dual:
    """The value of an operator or a known function, at least one argument being a tensor."""
    if (function, len(arguments)) in _CHOICES:
        return _CHOICES[function, len(arguments)](*arguments)
    compute, partials = _SMOOTH[function, len(arguments)]
    values = [a.value for a in arguments]
    value = compute(*values)
    return chain(value, arguments, [partial(p, value, *values) for p in partials])


def chain(value: Value, arguments: Sequence[Dual], partials: Sequence[Callable[[], Value]]) -> Dual:
    """The chain rule; a partial derivative is computed only where its argument varies."""
    slopes: dict[str, Value] = {}
    for argument, derivative in zip(arguments, partials, strict=True):
        if argument.slopes:
            factor = derivative()
            if isinstance(factor, float) and factor == 0.0:
                continue
            for name, slope in argument.slopes.items():
                product = _times(factor, slope)
                slopes[name] = slopes[name] + product if name in slopes else product
    return Dual(value, slopes)


def _times(a: Value, b: Value) -> Value:
    """a * b, without the work where one is the number 1."""
    if isinstance(a, float) and a == 1.0:
        return b
    return a if isinstance(b, float) and b == 1.0 else a * b


def _where(holds: Tensor, like: Value, a: Dual, b: Dual) -> Dual:
    """a where something holds, b elsewhere, and only the derivatives of the chosen one."""

    def pick(x: Value, y: Value) -> Tensor:
        # two Python numbers would become a tensor of the default precision
        return torch.where(holds, _tensor(x, like), _tensor(y, like))

    names = dict.fromkeys((*a.slopes, *b.slopes))
    slopes = {name: pick(a.slopes.get(name, 0.0), b.slopes.get(name, 0.0)) for name in names}
    return Dual(pick(a.value, b.value), slopes)


def _select(condition: Dual, a: Dual, b: Dual) -> Dual:
    value = condition.value
    assert isinstance(value, Tensor)
    return _where(value != 0, value, a, b)


def _min(a: Dual, b: Dual) -> Dual:
    """The second at a tie or where one is NaN, as OpenMM's code for x86 has it."""
    like = a.value if isinstance(a.value, Tensor) else b.value
    return _where(_tensor(a.value, like) < b.value, like, a, b)


def _max(a: Dual, b: Dual) -> Dual:
    """The first at a tie, the second where one is NaN, as OpenMM's code for x86 has it."""
    like = a.value if isinstance(a.value, Tensor) else b.value
    return _where(_tensor(a.value, like) >= b.value, like, a, b)


def _inverse(x: Value) -> Value:
    """1/x, also of a Python zero."""
    return math.copysign(math.inf, x) if isinstance(x, float) and x == 0.0 else 1.0 / x


def _power(base: Dual, exponent: Dual) -> Dual:
    x, n = base.value, exponent.value
    if isinstance(n, float) and n.is_integer() and abs(n) <= _LONGEST_PRODUCT:
        return _integer_power(base, int(n))
    value = torch.pow(x, n)
    return chain(
        value,
        (base, exponent),
        (lambda: n * torch.pow(x, n - 1.0), lambda: value * torch.log(_tensor(x, n))),
    )


def _integer_power(base: Dual, n: int) -> Dual:
    if n == 0:
        return Dual(torch.ones_like(base.value), {})
    below = _product(base.value, abs(n) - 1)
    value = _times(below, base.value)
    if n > 0:
        return chain(value, (base,), (lambda: float(n) * below,))
    inverse = 1.0 / value
    return chain(inverse, (base,), (lambda: n * (inverse / base.value),))


def _product(x: Value, n: int) -> Value:
    """x to the power n >= 0, by squaring."""
    result: Value = 1.0
    while n:
        if n % 2:
            result = _times(result, x)
        n //= 2
        if n:
            x = x * x
    return result


def _tensor(value: Value, like: Value) -> Tensor:
    """A value as a tensor of the precision of another, at least one of the two being a tensor."""
    if isinstance(value, Tensor):
        return value
    assert isinstance(like, Tensor)
    return like.new_full((), value)


def _sign(x: Tensor) -> Tensor:
    return 2.0 * _step(x) - 1.0


def _step(x: Tensor) -> Tensor:
    return (x >= 0).to(x.dtype)


def _atan2(y: Value, x: Value) -> Tensor:
    return torch.atan2(_tensor(y, x), _tensor(x, y))


_CHOICES: dict[tuple[str, int], Callable[..., Dual]] = {
    ("^", 2): _power,
    ("select", 3): _select,
    ("min", 2): _min,
    ("max", 2): _max,
}
"""Functions that make their own derivatives."""

_ONE_ARGUMENT: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor, Tensor], Value]]] = {
    "-": (lambda x: -x, lambda v, x: -1.0),
    "sqrt": (torch.sqrt, lambda v, x: 0.5 / v),
    "exp": (torch.exp, lambda v, x: v),
    "log": (torch.log, lambda v, x: 1.0 / x),
    "sin": (torch.sin, lambda v, x: torch.cos(x)),
    "cos": (torch.cos, lambda v, x: -torch.sin(x)),
    "sec": (lambda x: 1.0 / torch.cos(x), lambda v, x: v * torch.tan(x)),
    "csc": (lambda x: 1.0 / torch.sin(x), lambda v, x: -v * v * torch.cos(x)),
    "tan": (torch.tan, lambda v, x: 1.0 + v * v),
    "cot": (lambda x: 1.0 / torch.tan(x), lambda v, x: -1.0 - v * v),
    "asin": (torch.asin, lambda v, x: 1.0 / torch.sqrt(1.0 - x * x)),
    "acos": (torch.acos, lambda v, x: -1.0 / torch.sqrt(1.0 - x * x)),
    "atan": (torch.atan, lambda v, x: 1.0 / (1.0 + x * x)),
    "sinh": (torch.sinh, lambda v, x: torch.cosh(x)),
    "cosh": (torch.cosh, lambda v, x: torch.sinh(x)),
    "tanh": (torch.tanh, lambda v, x: 1.0 - v * v),
    "erf": (torch.erf, lambda v, x: _PER_ERF * torch.exp(-x * x)),
    "erfc": (torch.erfc, lambda v, x: -_PER_ERF * torch.exp(-x * x)),
    "square": (lambda x: x * x, lambda v, x: 2.0 * x),
    "cube": (lambda x: x * x * x, lambda v, x: 3.0 * x * x),
    "recip": (lambda x: 1.0 / x, lambda v, x: -v * v),
    "abs": (torch.abs, lambda v, x: _sign(x)),
    "step": (_step, lambda v, x: 0.0),
    "delta": (lambda x: (x == 0).to(x.dtype), lambda v, x: 0.0),
    "floor": (torch.floor, lambda v, x: 0.0),
    "ceil": (torch.ceil, lambda v, x: 0.0),
}
"""Value of x, and derivative from the value v and x."""

_SMOOTH: dict[tuple[str, int], tuple[Callable[..., Value], tuple[Callable[..., Value], ...]]] = {
    **{(name, 1): (value, (slope,)) for name, (value, slope) in _ONE_ARGUMENT.items()},
    ("+", 2): (lambda a, b: a + b, (lambda v, a, b: 1.0, lambda v, a, b: 1.0)),
    ("-", 2): (lambda a, b: a - b, (lambda v, a, b: 1.0, lambda v, a, b: -1.0)),
    ("*", 2): (lambda a, b: a * b, (lambda v, a, b: b, lambda v, a, b: a)),
    ("/", 2): (lambda a, b: a / b, (lambda v, a, b: _inverse(b), lambda v, a, b: -v / b)),
    ("atan2", 2): (
        _atan2,
        (lambda v, y, x: x / (x * x + y * y), lambda v, y, x: -y / (x * x + y * y)),
    ),
}
