"""One option of a run: its type, its limits, and the words that refuse a value."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, get_args, get_origin, get_type_hints

__all__ = ["Option", "option", "options_of", "parse"]


def option(description: str, flag: str | None = None, **limits: Any) -> Any:
    """A field with its help, its flag if that is not its name, and the limits of its values."""
    return field(metadata={"help": description, "flag": flag, **limits})


@dataclass(frozen=True)
class Option:
    """One option as the command line and the validation see it.

    Attributes:
        section: its table in the file.
        key: its name there.
        type: int, float, str or bool; of the items, if it is a list.
        is_list: whether it takes several values.
        limits: ``low``, ``high`` (inclusive), ``above``, ``below`` (exclusive), ``choices``,
            and what infinity, else refused, stands for: ``infinity``.
        help: what it is.
        flag: on the command line, without dashes.
    """

    section: str
    key: str
    type: type
    is_list: bool
    limits: Mapping[str, Any]
    help: str
    flag: str

    def expected(self) -> str:
        """What is accepted, in words."""
        words = {int: "an integer", float: "a number", str: "text", bool: "true or false"}
        if "choices" in self.limits:
            return "one of " + ", ".join(self.limits["choices"])
        signs = {"low": "of at least", "above": "above", "high": "at most", "below": "below"}
        parts = [f"{signs[k]} {v}" for k, v in self.limits.items() if k in signs]
        what = " ".join([words[self.type], " and ".join(parts)]).strip()
        if "infinity" in self.limits:
            what += f" (inf: {self.limits['infinity']})"
        return f"a list, each {what}" if self.is_list else what

    def check(self, value: Any) -> Any:
        """Return the value in its type.

        Raises:
            ValueError: it has another type or is out of range.
        """
        if self.is_list:
            if not isinstance(value, (list, tuple)) or not value:
                raise self._refused(value)
            return tuple(self._item(item, value) for item in value)
        return self._item(value, value)

    def _item(self, item: Any, whole: Any) -> Any:
        if self.type is float and isinstance(item, int) and not isinstance(item, bool):
            item = float(item)
        right = isinstance(item, self.type) and (self.type is bool) == isinstance(item, bool)
        if not right or item == "" or (self.type is float and not self._defined(item)):
            raise self._refused(whole)
        limits = self.limits
        inside = (
            item in limits.get("choices", (item,))
            and ("low" not in limits or item >= limits["low"])
            and ("high" not in limits or item <= limits["high"])
            and ("above" not in limits or item > limits["above"])
            and ("below" not in limits or item < limits["below"])
        )
        if not inside:
            raise self._refused(whole)
        return item

    def _defined(self, number: float) -> bool:
        return math.isfinite(number) or (number == math.inf and "infinity" in self.limits)

    def _refused(self, value: Any) -> ValueError:
        return ValueError(f"{self.section}.{self.key}: expected {self.expected()}, got {value!r}")


def options_of(section: str, group: type) -> dict[str, Option]:
    """Return the options that the fields of a dataclass made by :func:`option` are, by key."""
    hints = get_type_hints(group)
    found = {}
    for f in fields(group):
        hint = hints[f.name]
        if type(None) in get_args(hint):
            hint = get_args(hint)[0]
        is_list = get_origin(hint) is tuple
        kind = get_args(hint)[0] if is_list else hint
        limits = {k: v for k, v in f.metadata.items() if k not in ("help", "flag")}
        flag = f.metadata["flag"] or f.name.replace("_", "-")
        found[f.name] = Option(section, f.name, kind, is_list, limits, f.metadata["help"], flag)
    return found


def parse(option: Option, words: Sequence[str]) -> Any:
    """Return the value of an option from the words of a command line.

    Raises:
        ValueError: it is not of the option's type or out of range.
    """

    def one(word: str) -> Any:
        if option.type is str:
            return word
        try:
            return option.type(word)
        except ValueError:
            return word  # refused by check, in the option's own words

    values = [one(word) for word in words]
    return option.check(values if option.is_list else values[0])
