"""Expressions of OpenMM's custom forces as straight-line programs on tensors.

What depends on parameters alone is computed once, in double precision. What is left is a list of
steps, no two of them the same, whose values and derivatives follow from one pass in their order.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias

import torch
from torch import Tensor

from pyrocg.energies.expressions import Call, Name, Number, Tree
from pyrocg.energies.operations import Dual, Value, apply, chain, is_known
from pyrocg.energies.splines import TabulatedFunction
from pyrocg.energies.terms import Record

__all__ = ["Formula", "evaluate"]


@dataclass(frozen=True)
class _Parameter:
    """Values that differ between the rows: one of the formula's tables."""

    table: int


@dataclass(frozen=True)
class _Operation:
    """An operator or function of earlier steps."""

    function: str
    arguments: tuple[int, ...]


@dataclass(frozen=True)
class _Lookup:
    """A tabulated function of earlier steps."""

    function: int
    arguments: tuple[int, ...]


_Step: TypeAlias = Name | Number | _Parameter | _Operation | _Lookup


@dataclass(frozen=True, eq=False)
class Formula(Record):
    """An expression with its parameters filled in, a function of variables.

    Example:
        >>> import torch
        >>> from pyrocg.energies.expressions import parse
        >>> spring = Formula.of(parse("k*(r-1)^2"), ["r"], {"k": torch.tensor([2.0, 3.0])})
        >>> energy, slopes = spring({"r": torch.tensor([[3.0], [1.5]])})
        >>> energy.tolist(), slopes["r"].tolist()
        ([[8.0], [0.75]], [[8.0], [3.0]])
    """

    steps: tuple[_Step, ...]
    """The last one is the expression."""
    tables: tuple[Tensor, ...]
    """Parameters and what is computed from them alone, (rows..., 1)."""
    functions: tuple[TabulatedFunction, ...]
    """The tabulated functions that are looked up."""

    @classmethod
    def of(
        cls,
        tree: Tree,
        variables: Sequence[str],
        parameters: Mapping[str, Tensor],
        functions: Mapping[str, TabulatedFunction] | None = None,
    ) -> Formula:
        """Compile an expression.

        Args:
            tree: the expression.
            variables: names of what will vary.
            parameters: values by name, float64, ``()`` or of the shape of the variables without
                their last dimension, the batch.
            functions: tabulated functions by name; they hide built-in ones.

        Raises:
            ValueError: a name or a function is unknown, or a constant index is outside of a table.
        """
        builder = _Builder(variables, parameters, functions or {})
        last = builder.placed(builder.build(tree))  # a choice that is known is an earlier step
        steps = tuple(builder.steps[: last + 1])
        return cls(steps, tuple(builder.tables), tuple(builder.looked_up.values()))

    def __call__(self, variables: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Values (rows..., batch) and the derivatives by every variable, of that shape too."""
        done: list[Dual] = []
        for step in self.steps:
            done.append(self._perform(step, done, variables))
        last = done[-1]
        slopes = {name: _full(last.slopes.get(name, 0.0), x) for name, x in variables.items()}
        return _full(last.value, next(iter(variables.values()))), slopes

    def _perform(self, step: _Step, done: Sequence[Dual], variables: Mapping[str, Tensor]) -> Dual:
        if isinstance(step, Name):
            return Dual(variables[step.name], {step.name: 1.0})
        if isinstance(step, Number):
            return Dual(step.value, {})
        if isinstance(step, _Parameter):
            return Dual(self.tables[step.table], {})
        arguments = [done[k] for k in step.arguments]
        if isinstance(step, _Operation):
            return apply(step.function, arguments)
        return _look_up(self.functions[step.function], arguments)


def evaluate(
    tree: Tree,
    parameters: Mapping[str, Tensor],
    functions: Mapping[str, TabulatedFunction] | None = None,
) -> Tensor:
    """The value of an expression of parameters alone, which broadcast against each other.

    Raises:
        ValueError: a name or a function is unknown, or an index is outside of a table.
    """
    value = _Builder((), parameters, functions or {}).build(tree)
    assert not isinstance(value, int)
    return value


def _look_up(function: TabulatedFunction, arguments: Sequence[Dual]) -> Dual:
    values = [a.value for a in arguments]
    like = next(v for v in values if isinstance(v, Tensor))
    tensors = [v if isinstance(v, Tensor) else like.new_full((), v) for v in values]
    value, slopes = function(*tensors)
    return chain(value, arguments, [partial(_same, slope) for slope in slopes])


def _same(value: Value) -> Value:
    return value


def _full(value: Value, like: Tensor) -> Tensor:
    if isinstance(value, Tensor) and value.shape == like.shape:
        return value
    return torch.zeros_like(like) + value


class _Builder:
    """Turns a tree into steps; a subtree without variables becomes a number or a table."""

    def __init__(
        self,
        variables: Sequence[str],
        parameters: Mapping[str, Tensor],
        functions: Mapping[str, TabulatedFunction],
    ) -> None:
        self.steps: list[_Step] = []
        self.tables: list[Tensor] = []
        self.looked_up: dict[str, TabulatedFunction] = {}
        self._variables, self._parameters, self._functions = variables, parameters, functions
        self._known: dict[_Step, int] = {}
        # by identity: definitions are shared, and a tree written out can be exponentially large
        self._built: dict[int, Tensor | int] = {}

    def build(self, tree: Tree) -> Tensor | int:
        """The value of a constant subtree, or the step that another one becomes."""
        if id(tree) not in self._built:
            self._built[id(tree)] = self._new(tree)
        return self._built[id(tree)]

    def _new(self, tree: Tree) -> Tensor | int:
        if isinstance(tree, Number):
            return torch.tensor(tree.value, dtype=torch.float64)
        if isinstance(tree, Name):
            if tree.name in self._variables:
                return self._step(tree)
            if tree.name not in self._parameters:
                raise ValueError(f"expected a variable or a parameter, got {tree.name!r}")
            return self._parameters[tree.name]
        self._check(tree)
        arguments = [self.build(a) for a in tree.arguments]
        if not any(isinstance(a, int) for a in arguments):
            return self._constant(tree, [a for a in arguments if not isinstance(a, int)])
        if tree.function == "select" and tree.function not in self._functions:
            condition = arguments[0]
            if isinstance(condition, Tensor) and len((condition != 0).unique()) == 1:
                return arguments[1 if bool((condition != 0).any()) else 2]
        places = tuple(self.placed(a) for a in arguments)
        if tree.function not in self._functions:
            return self._step(_Operation(tree.function, places))
        self.looked_up.setdefault(tree.function, self._functions[tree.function])
        return self._step(_Lookup(list(self.looked_up).index(tree.function), places))

    def _check(self, tree: Call) -> None:
        """Refuse an unknown function, or one with the wrong number of arguments."""
        n = len(tree.arguments)
        table = self._functions.get(tree.function)
        if n != len(table.sizes) if table is not None else not is_known(tree.function, n):
            raise ValueError(f"expected a known function, got {tree.function!r} of {n} arguments")

    def _constant(self, tree: Call, values: Sequence[Tensor]) -> Tensor:
        duals = [Dual(v, {}) for v in values]
        if tree.function not in self._functions:
            value = apply(tree.function, duals).value
            assert isinstance(value, Tensor)
            return value
        looked_up = _look_up(self._functions[tree.function], duals).value
        assert isinstance(looked_up, Tensor)
        if torch.isnan(looked_up).any():
            raise ValueError("an index of a tabulated function is outside of its table")
        return looked_up

    def placed(self, value: Tensor | int) -> int:
        """The step that gives a value."""
        if isinstance(value, int):
            return value
        if value.numel() and bool((value == value.flatten()[0]).all()):
            return self._step(Number(float(value.flatten()[0])))
        for table, other in enumerate(self.tables):
            if value.shape == other.shape[:-1] and torch.equal(value, other[..., 0]):
                return self._step(_Parameter(table))
        self.tables.append(value.unsqueeze(-1).contiguous())
        return self._step(_Parameter(len(self.tables) - 1))

    def _step(self, step: _Step) -> int:
        if step not in self._known:
            self._known[step] = len(self.steps)
            self.steps.append(step)
        return self._known[step]
