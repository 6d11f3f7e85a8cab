"""Expressions of OpenMM's custom forces: parsed into trees, compared with known forms, evaluated.

The language is Lepton's: numbers, names, ``+ - * / ^``, functions, and definitions after
semicolons, each of which may use those after it: ``"a*r^2; a=b+1; b=2"``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

__all__ = ["Call", "Name", "Number", "Tree", "evaluate", "names_in", "parse", "unify"]

Array: TypeAlias = NDArray[np.float64]

_TOKEN = re.compile(
    r"\s*(?:(?P<number>(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)"
    r"|(?P<name>[A-Za-z_][A-Za-z0-9_']*)|(?P<symbol>[-+*/^(),]))"
)
_BINARY = {"+": 0, "-": 0, "*": 1, "/": 1, "^": 3}
"""Precedences; a sign binds tighter than a product and looser than a power."""
_SIGN = 2


@dataclass(frozen=True)
class Number:
    """A constant."""

    value: float


@dataclass(frozen=True)
class Name:
    """A variable."""

    name: str


@dataclass(frozen=True)
class Call:
    """An operator, ``+ - * / ^`` of two arguments or ``-`` of one, or a named function."""

    function: str
    arguments: tuple[Tree, ...]


Tree = Number | Name | Call


def parse(text: str) -> Tree:
    """The tree of an expression, its definitions put in place.

    Raises:
        ValueError: the text is not an expression.
    """
    main, *definitions = text.split(";")
    known: dict[str, Tree] = {}
    for definition in reversed([d for d in definitions if d.strip()]):
        name, equals, value = definition.partition("=")
        if not equals or not name.strip():
            raise ValueError(f"expected 'name=expression' after a semicolon, got {definition!r}")
        known[name.strip()] = _Parser(value, known).tree()
    return _Parser(main, known).tree()


class _Parser:
    """Precedence climbing over the tokens of one expression."""

    def __init__(self, text: str, known: Mapping[str, Tree]) -> None:
        self._text, self._known = text, known
        self._tokens: list[tuple[str, str]] = []
        self._at = position = 0
        while text[position:].strip():
            token = _TOKEN.match(text, position)
            if token is None or token.lastgroup is None:
                raise self._error(f"got {text[position:].strip()[0]!r}")
            self._tokens.append((token.lastgroup, token[token.lastgroup]))
            position = token.end()
        self._tokens.append(("end", ""))

    def tree(self) -> Tree:
        """The whole text."""
        tree = self._operation(0)
        if self._peek() != "":
            raise self._error(f"got {self._peek()!r}")
        return tree

    def _error(self, got: str) -> ValueError:
        return ValueError(f"expected an expression, {got} in {self._text!r}")

    def _peek(self) -> str:
        return self._tokens[self._at][1]

    def _next(self) -> tuple[str, str]:
        self._at += 1
        return self._tokens[self._at - 1]

    def _take(self, symbol: str) -> None:
        if self._peek() != symbol:
            raise self._error(f"got {self._peek() or 'the end'!r} for {symbol!r}")
        self._at += 1

    def _operation(self, precedence: int) -> Tree:
        left = self._operand()
        while (binding := _BINARY.get(self._peek(), -1)) >= precedence:
            _, operator = self._next()
            right = self._operation(binding if operator == "^" else binding + 1)
            left = Call(operator, (left, right))
        return left

    def _operand(self) -> Tree:
        kind, token = self._next()
        if kind == "number":
            return Number(float(token))
        if kind == "name":
            if self._peek() == "(":
                return Call(token, self._arguments())
            return self._known.get(token, Name(token))
        if token == "-":
            return Call("-", (self._operation(_SIGN),))
        if token == "(":
            inside = self._operation(0)
            self._take(")")
            return inside
        raise self._error(f"got {token or 'the end'!r}")

    def _arguments(self) -> tuple[Tree, ...]:
        self._take("(")
        arguments = [self._operation(0)]
        while self._peek() == ",":
            self._take(",")
            arguments.append(self._operation(0))
        self._take(")")
        return tuple(arguments)


def names_in(tree: Tree) -> set[str]:
    """The variables of an expression."""
    if isinstance(tree, Name):
        return {tree.name}
    if isinstance(tree, Call):
        return set().union(*(names_in(a) for a in tree.arguments))
    return set()


def unify(
    pattern: Tree, tree: Tree, holes: Collection[str], filling: Collection[str]
) -> dict[str, Tree] | None:
    """What fills the holes of a pattern so that it equals a tree; None if nothing does.

    Args:
        pattern: a known form, with named holes.
        tree: what is compared with it.
        holes: names in the pattern that stand for any expression, the same wherever they occur.
        filling: the variables that such an expression may contain.
    """
    found: dict[str, Tree] = {}

    def same(a: Tree, b: Tree) -> bool:
        if isinstance(a, Name) and a.name in holes:
            return names_in(b) <= set(filling) and found.setdefault(a.name, b) == b
        if isinstance(a, Call) and isinstance(b, Call):
            alike = a.function == b.function and len(a.arguments) == len(b.arguments)
            return alike and all(map(same, a.arguments, b.arguments))
        return a == b

    return found if same(pattern, tree) else None


_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "+": np.add,
    "*": np.multiply,
    "/": np.divide,
    "^": np.power,
    "-": lambda a, b=None: np.negative(a) if b is None else np.subtract(a, b),
    "sqrt": np.sqrt,
    "exp": np.exp,
    "log": np.log,
    "abs": np.abs,
    "min": np.minimum,
    "max": np.maximum,
}


def evaluate(
    tree: Tree,
    values: Mapping[str, Array],
    functions: Mapping[str, Callable[..., Array]],
) -> Array:
    """The value of an expression.

    Args:
        tree: the expression.
        values: of its variables, arrays that broadcast against each other.
        functions: beyond arithmetic, square root, exponential, logarithm, absolute value, minimum
            and maximum.

    Raises:
        KeyError: a variable has no value.
        ValueError: a function is unknown.
    """
    if isinstance(tree, Number):
        return np.asarray(tree.value)
    if isinstance(tree, Name):
        return values[tree.name]
    function = functions.get(tree.function) or _FUNCTIONS.get(tree.function)
    if function is None:
        raise ValueError(f"expected a known function, got {tree.function!r}")
    return np.asarray(function(*(evaluate(a, values, functions) for a in tree.arguments)))
