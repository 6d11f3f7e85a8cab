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

_CALLS_BEFORE = 3
"""Calls of one size before it gets a graph: sizes that come once are not worth one."""
_IDLE = 100
"""Calls after which a graph that was not used makes room for another."""
_WARM_UP = 3
"""Calls on another stream before a graph is captured, as torch asks for."""


class Graphed:
    """A function of columns whose usual batch sizes are captured as CUDA graphs.

    A size gets a graph at its third call, which is compared with the function itself at other
    positions. Larger batches, calls while another graph is being captured, and calls by other
    threads or on other streams than the graph's are computed as they are. The results are
    overwritten by the next call of the same size. If a graph cannot be had, or is wrong, it says so
    once and goes on without any.

    Args:
        columns: from positions (3, n_atoms, batch) to two tensors.
        largest: columns above which launches cost nothing in comparison.
        most: how many graphs are kept, each with memory of its own.
    """

    def __init__(self, columns: Columns, largest: int, most: int = 4) -> None:
        self._columns, self._largest, self._most = columns, largest, most
        self._calls: Counter[int] = Counter()
        self._graphs: dict[int, _Captured] = {}
        self._used: dict[int, int] = {}
        self._now = 0

    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor]:
        size = x.shape[-1]
        if size > self._largest or torch.cuda.is_current_stream_capturing():
            return self._columns(x)
        self._now += 1
        if size not in self._graphs:
            self._calls[size] += 1
            if self._calls[size] < _CALLS_BEFORE or not self._make_room():
                return self._columns(x)
            self._capture(x)
        graph = self._graphs.get(size)
        if graph is None or graph.owner != _owner(x):
            return self._columns(x)
        self._used[size] = self._now
        return graph(x)

    def _make_room(self) -> bool:
        """Drop the graph that was not used for longest, unless all are in use."""
        if len(self._graphs) < self._most:
            return True
        oldest = min(self._graphs, key=lambda size: self._used[size])
        if self._now - self._used[oldest] < _IDLE:
            return False
        del self._graphs[oldest], self._calls[oldest]
        return True

    def _capture(self, x: Tensor) -> None:
        """Keep a graph that gives the numbers of the function; else give up all of them."""
        try:
            graph = _captured(self._columns, x)
            other = 1.01 * x
            right = all(map(_close, graph(other), self._columns(other)))
            reason = "" if right else "its numbers are not those of the kernels"
        except RuntimeError as error:
            reason = " ".join(str(error.__context__ or error).split("\n\n")[0].split())
        if not reason:
            self._graphs[x.shape[-1]] = graph
            return
        self._largest = 0
        self._graphs.clear()
        warnings.warn(
            f"no CUDA graph ({reason}); small batches of energies cost several times as much",
            RuntimeWarning,
            stacklevel=2,
        )


@dataclass(frozen=True)
class _Captured:
    """A graph, where it reads from and writes to, and who may use these."""

    graph: Any
    x: Tensor
    results: tuple[Tensor, Tensor]
    owner: tuple[int, Any]

    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor]:
        self.x.copy_(x)
        self.graph.replay()
        return self.results


def _owner(x: Tensor) -> tuple[int, Any]:
    """The calling thread, and its stream on the tensor's device."""
    return threading.get_ident(), torch.cuda.current_stream(x.device)


def _close(a: Tensor, b: Tensor) -> bool:
    """Equal but for rounding and the order of sums."""
    return torch.allclose(a, b, rtol=1e-3, atol=1e-3, equal_nan=True)


def _captured(columns: Columns, x: Tensor) -> _Captured:
    static, owner = x.clone(), _owner(x)
    current, beside = owner[1], torch.cuda.Stream(x.device)
    beside.wait_stream(current)
    with torch.cuda.stream(beside):  # which makes its device the current one
        for _ in range(_WARM_UP):
            columns(static)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=beside):
            results = columns(static)
    current.wait_stream(beside)
    return _Captured(graph, static, results, owner)
