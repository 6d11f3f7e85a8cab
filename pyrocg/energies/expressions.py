"""Expressions of OpenMM's custom forces: parsed into trees, changed, compared with known forms.

The language is Lepton's: numbers, names, ``+ - * / ^``, functions, and definitions after
semicolons, each of which may use those after it: ``"a*r^2; a=b+1; b=2"``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

__all__ = ["Call", "Name", "Number", "Tree", "names_in", "parse", "substitute", "unify"]

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


def parse(text: str, definitions: Mapping[str, Tree] | None = None) -> Tree:
    """The tree of an expression, its definitions put in place.

    Args:
        text: the expression, with definitions of its own after semicolons.
        definitions: what other names stand for.

    Raises:
        ValueError: the text is not an expression.
    """
    main, *own = text.split(";")
    known = dict(definitions or {})
    for definition in reversed([d for d in own if d.strip()]):
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
    found: set[str] = set()
    seen: set[int] = set()  # by identity: parts are shared
    waiting = [tree]
    while waiting:
        part = waiting.pop()
        if id(part) in seen:
            continue
        seen.add(id(part))
        if isinstance(part, Name):
            found.add(part.name)
        elif isinstance(part, Call):
            waiting.extend(part.arguments)
    return found


def substitute(tree: Tree, replace: Callable[[Call], Tree | None]) -> Tree:
    """An expression with some calls replaced, from the innermost to the outermost.

    Args:
        tree: the expression.
        replace: what a call becomes, its arguments already replaced; None to keep it.
    """
    done: dict[int, Tree] = {}  # by identity: parts are shared

    def new(old: Tree) -> Tree:
        if id(old) not in done:
            done[id(old)] = old
            if isinstance(old, Call):
                call = Call(old.function, tuple(new(a) for a in old.arguments))
                done[id(old)] = replace(call) or call
        return done[id(old)]

    return new(tree)


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
