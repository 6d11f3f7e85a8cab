"""Small batches on a GPU by CUDA graphs, which take the launches of all kernels at once."""

from __future__ import annotations

import threading
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

__all__ = ["Graphed"]

Columns = Callable[[Tensor], tuple[Tensor, Tensor]]

_CALL_OF_CAPTURE = 3
"""The call of one size at which it gets a graph: sizes that come once are not worth one."""
_IDLE = 100
"""Calls after which a graph that was not used makes room for another."""
_WARM_UP = 3
"""Calls on another stream before a graph is captured, as torch asks for."""
_CAPTURING = threading.Lock()
"""Held by the one thread that captures."""

_Key = tuple[int, int, Any]
"""Batch size, and the thread and the stream that call."""


class Graphed:
    """A function of columns whose usual batch sizes are captured as CUDA graphs.

    A size gets a graph at its third call by the same thread on the same stream; the graph is
    compared with the function itself at other positions. Larger batches, and calls while a graph is
    being captured, are computed as they are. The results are overwritten by the next call of the
    same size, thread and stream. If a graph cannot be had, or is wrong, it says so once and goes on
    without any.

    Args:
        columns: from positions (3, n_atoms, batch) to two tensors.
        largest: columns above which launches cost nothing in comparison.
        most: how many graphs are kept, each with memory of its own.
    """

    def __init__(self, columns: Columns, largest: int, most: int = 4) -> None:
        self._columns, self._largest, self._most = columns, largest, most
        self._calls: Counter[_Key] = Counter()
        self._graphs: dict[_Key, _Captured] = {}
        self._used: dict[_Key, int] = {}
        self._now = 0

    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor]:
        size = x.shape[-1]
        if size > self._largest or torch.cuda.is_current_stream_capturing():
            return self._columns(x)
        key = size, threading.get_ident(), torch.cuda.current_stream(x.device)
        self._now += 1
        if key not in self._graphs and not self._capture(key, x):
            return self._columns(x)
        self._used[key] = self._now
        return self._graphs[key](x)

    def _capture(self, key: _Key, x: Tensor) -> bool:
        """Capture a graph if it is time to, there is room, and nobody else captures."""
        self._calls[key] += 1
        if self._calls[key] < _CALL_OF_CAPTURE or not _CAPTURING.acquire(blocking=False):
            return False
        try:
            return self._make_room() and self._keep_graph(key, x)
        finally:
            _CAPTURING.release()

    def _make_room(self) -> bool:
        """Drop the graph that was not used for longest, unless all are in use."""
        if len(self._graphs) < self._most:
            return True
        oldest = min(self._graphs, key=lambda key: self._used[key])
        if self._now - self._used[oldest] < _IDLE:
            return False
        del self._graphs[oldest], self._calls[oldest]
        return True

    def _keep_graph(self, key: _Key, x: Tensor) -> bool:
        """Keep a graph that gives the numbers of the function; else give up all of them."""
        try:
            graph = _captured(self._columns, x)
            other = 1.01 * x
            right = all(map(_close, graph(other), self._columns(other)))
            reason = "" if right else "its numbers are not those of the kernels"
        except RuntimeError as error:
            reason = " ".join(str(error.__context__ or error).split("\n\n")[0].split())
            _renew_random_numbers(x)
        if not reason:
            self._graphs[key] = graph
            return True
        self._largest = 0
        self._graphs.clear()
        warnings.warn(
            f"no CUDA graph ({reason}); small batches of energies cost several times as much",
            RuntimeWarning,
            stacklevel=2,
        )
        return False


@dataclass(frozen=True)
class _Captured:
    """A graph, where it reads from, and where it writes to."""

    graph: Any
    x: Tensor
    results: tuple[Tensor, Tensor]

    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor]:
        self.x.copy_(x)
        self.graph.replay()
        return self.results


def _close(a: Tensor, b: Tensor) -> bool:
    """Equal but for rounding and the order of sums."""
    return torch.allclose(a, b, rtol=1e-3, atol=1e-3, equal_nan=True)


def _renew_random_numbers(x: Tensor) -> None:
    """Leave the state of a failed capture, in which some versions of torch refuse to draw any."""
    if x.is_cuda:
        generator = torch.cuda.default_generators[x.device.index]
        generator.graphsafe_set_state(generator.clone_state())


def _captured(columns: Columns, x: Tensor) -> _Captured:
    static = x.clone()
    current, beside = torch.cuda.current_stream(x.device), torch.cuda.Stream(x.device)
    beside.wait_stream(current)
    with torch.cuda.stream(beside):  # which makes its device the current one
        for _ in range(_WARM_UP):
            columns(static)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=beside, capture_error_mode="thread_local"):
            results = columns(static)
    current.wait_stream(beside)
    return _Captured(graph, static, results)
