"""What Ctrl-C, or a disk that is full, does to a run."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

__all__ = ["advice_when_stopped", "deferred_interrupt"]


@contextmanager
def advice_when_stopped(advice: str) -> Iterator[None]:
    """Add advice to a ``KeyboardInterrupt`` or ``OSError`` that comes from inside."""
    try:
        yield
    except KeyboardInterrupt:
        raise KeyboardInterrupt(advice) from None
    except OSError as error:
        raise OSError(f"{error}; then {advice}") from error


@contextmanager
def deferred_interrupt(say: Callable[[str], None]) -> Iterator[Callable[[], bool]]:
    """Let the first Ctrl-C wait for the end of a training step; a second one does not wait.

    Args:
        say: is told that it waits.

    Yields:
        Whether it was pressed, to be asked after each step.
    """
    asked: list[int] = []

    def note(number: int, _: Any) -> None:
        if asked:
            raise KeyboardInterrupt
        asked.append(number)
        say("stopping after this step; press Ctrl-C again to stop at once")

    try:
        before = signal.signal(signal.SIGINT, note)
    except ValueError:  # not in the main thread, which alone gets signals
        before = None
    try:
        yield lambda: bool(asked)
    finally:
        if before is not None:
            signal.signal(signal.SIGINT, before)
