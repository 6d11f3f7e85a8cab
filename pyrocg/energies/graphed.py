"""Small batches on a GPU by CUDA graphs, which take the launches of all kernels at once."""

from __future__ import annotations

import warnings
from collections import Counter, OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

__all__ = ["Graphed"]

Columns = Callable[[Tensor], tuple[Tensor, Tensor]]

_CALLS_BEFORE = 3
"""Calls of one size before it gets a graph: sizes that come once are not worth one."""
_WARM_UP = 3
"""Calls on another stream before a graph is captured, as torch asks for."""


class Graphed:
    """A function of columns whose usual batch sizes are captured as CUDA graphs.

    A size gets a graph at its third call; the sizes used last are kept. Larger batches, and calls
    while another graph is being captured, are computed as they are. The results are overwritten by
    the next call of the same size. If a graph cannot be had, or is wrong, it says so once and goes
    on without.

    Args:
        columns: from positions (3, n_atoms, batch) to two tensors.
        largest: columns above which launches cost nothing in comparison.
        most: how many graphs are kept, each with memory of its own.
    """

    def __init__(self, columns: Columns, largest: int = 2**14, most: int = 4) -> None:
        self._columns, self._largest, self._most = columns, largest, most
        self._calls: Counter[int] = Counter()
        self._graphs: OrderedDict[int, _Captured] = OrderedDict()

    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor]:
        size = x.shape[-1]
        if size > self._largest or torch.cuda.is_current_stream_capturing():
            return self._columns(x)
        if size not in self._graphs:
            self._calls[size] += 1
            if self._calls[size] < _CALLS_BEFORE:
                return self._columns(x)
            if not self._keep_graph(x):
                return self._columns(x)
        self._graphs.move_to_end(size)
        return self._graphs[size](x)

    def _keep_graph(self, x: Tensor) -> bool:
        """Capture a graph that gives the numbers of the function itself; else say so once."""
        if len(self._graphs) == self._most:
            dropped, _ = self._graphs.popitem(last=False)
            del self._calls[dropped]
        try:
            graph = _captured(self._columns, x)
            right = all(map(_close, graph(x), self._columns(x)))
            reason = "" if right else "its numbers are not those of the kernels"
        except RuntimeError as error:
            reason = " ".join(str(error).split("\n\n")[0].split())
        if reason:
            self._largest = 0
            warnings.warn(
                f"no CUDA graph ({reason}); small batches of energies cost several times as much",
                RuntimeWarning,
                stacklevel=2,
            )
            return False
        self._graphs[x.shape[-1]] = graph
        return True


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


def _captured(columns: Columns, x: Tensor) -> _Captured:
    static = x.clone()
    current, beside = torch.cuda.current_stream(x.device), torch.cuda.Stream(x.device)
    beside.wait_stream(current)
    with torch.cuda.stream(beside):
        for _ in range(_WARM_UP):
            columns(static)
    current.wait_stream(beside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = columns(static)
    return _Captured(graph, static, results)
