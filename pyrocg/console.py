"""What the command line says on standard error: notes, warnings and errors of one line each."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

__all__ = ["note", "one_line", "one_line_warnings", "output_is_closed"]


def note(text: str) -> None:
    """Say something beside the results."""
    print(f"pyrocg: {text}", file=sys.stderr)


def one_line(error: BaseException | None) -> str:
    """Return the message of an error in one line; its class where it has none."""
    if isinstance(error, KeyError) and error.args:
        return str(error.args[0])
    return " ".join(str(error).split()) or type(error).__name__


@contextmanager
def one_line_warnings() -> Iterator[None]:
    """Show warnings as notes, each once for each place; those for programmers not at all."""

    def show(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
        if not issubclass(category, (DeprecationWarning, FutureWarning)):
            warning = message if isinstance(message, Warning) else category(message)
            note(f"warning: {one_line(warning)}")

    with warnings.catch_warnings():
        warnings.simplefilter("default")
        warnings.showwarning = show  # type: ignore[assignment]
        yield


def output_is_closed() -> bool:
    """Whether nobody reads the results any more; what is left of them is then forgotten."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        with open(os.devnull, "w") as nowhere:  # Python flushes once more when it ends
            os.dup2(nowhere.fileno(), sys.stdout.fileno())
        return True
    return False
