"""A potential as a program for whole batches: chunked, compiled, on every core."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

from pyrocg.energies.terms import Potential

__all__ = ["Program", "chunk_size"]

Columns = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Positions (3, n_atoms, batch) to energies (batch,) and gradients (3, n_atoms, batch)."""
Results = list[tuple[Tensor, Tensor]]

_LANES = 16
"""Batches are padded to a multiple of this: the float32 numbers of an AVX-512 register."""
_SMALLEST_GROUP = 32
"""Configurations below which another thread costs more than it computes."""
_PAIR_BYTES = {"cpu": 2**19, "other": 2**28}
"""Size of one array over all pairs and one chunk of a batch. Half a megabyte keeps the handful of
them in the second-level cache of a core; a GPU wants work."""


class Program:
    """Energies and gradients of batches, in the precision and on the device of a potential.

    The potential is compiled at the first call; if that fails, the program says so once and runs it
    uncompiled. Compiled code runs on one thread, and a batch on the CPU is shared among
    ``torch.get_num_threads()`` of them: they meet once per batch. Threads inside the code would
    meet after each of its twenty loops, and lose whenever another process holds a core.

    Args:
        potential: what to evaluate.
        compile: whether to compile.
    """

    def __init__(self, potential: Potential, compile: bool) -> None:
        self._columns: Columns = potential.columns
        self._pending = compile
        self._threaded = compile and potential.diagonal.device.type == "cpu"
        self._dtype = potential.diagonal.dtype
        self._chunk = chunk_size(len(potential.diagonal), self._dtype, potential.diagonal.device)
        self._pool: ThreadPoolExecutor | None = None
        self._pool_of = (0, 0)

    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Energies (batch,) and gradients (3, n_atoms, batch) of positions (batch, n_atoms, 3)."""
        if self._pending:
            self._compile(x)
        threads = torch.get_num_threads() if self._threaded else 1
        groups = x.split(max(_SMALLEST_GROUP, _in_lanes(-(-len(x) // threads))))
        if len(groups) == 1 or threads == 1:
            results = self._evaluate(x)
        else:
            pool = self._threads(threads)
            others = [pool.submit(self._evaluate, group) for group in groups[1:]]
            results = self._evaluate(groups[0])
            results += [result for other in others for result in other.result()]
        if len(results) == 1:
            return results[0]
        energies, gradients = zip(*results, strict=True)
        return torch.cat(energies), torch.cat(gradients, dim=-1)

    def _evaluate(self, x: Tensor) -> Results:
        results = []
        # compiled code is kept by the modes it was made in, so there is one: neither mode
        with torch.inference_mode(False), torch.no_grad():
            for chunk in x.split(self._chunk):
                energy, gradient = self._columns(_as_columns(chunk, self._dtype))
                results.append((energy[: len(chunk)], gradient[..., : len(chunk)]))
        return results

    def _compile(self, x: Tensor) -> None:
        eager = self._columns
        try:
            with warnings.catch_warnings(), torch.inference_mode(False), torch.no_grad():
                warnings.simplefilter("ignore")  # torch's own, from modules it imports on the way
                example = _as_columns(x[:1].expand(2 * _LANES, -1, -1), self._dtype)
                self._columns = compiled(eager, example)
                self._evaluate(x[:1])
        except Exception as error:
            self._columns, self._threaded = eager, False
            reason = " ".join(str(error).split("\n\n")[0].split())
            warnings.warn(
                f"torch.compile failed ({reason}); energies are computed uncompiled, 5 to 10 times "
                "slower. Install a C++ compiler (g++ or clang++), or pass compile=False",
                RuntimeWarning,
                stacklevel=2,
            )
        self._pending = False

    def _threads(self, threads: int) -> ThreadPoolExecutor:
        owner = os.getpid(), threads
        if self._pool is None or self._pool_of != owner:  # a forked child has none of the threads
            self._pool, self._pool_of = ThreadPoolExecutor(threads - 1), owner
        return self._pool


def chunk_size(n_atoms: int, dtype: torch.dtype, device: torch.device) -> int:
    """How many configurations are evaluated at once."""
    budget = _PAIR_BYTES["cpu" if device.type == "cpu" else "other"]
    fitting = budget // (n_atoms * n_atoms * dtype.itemsize)
    return max(_LANES, fitting // _LANES * _LANES)


def compiled(columns: Columns, example: Tensor) -> Columns:
    """Compile a function of columns for every batch size from an example of two or more columns.

    The function is traced first, so that each molecule has code of its own: torch.compile keeps
    its results by code object, and gives up after eight results for one.
    """
    from torch.fx.experimental.proxy_tensor import make_fx

    trace = make_fx(lambda x: columns(x), tracing_mode="symbolic", _allow_non_fake_inputs=True)
    graph = trace(example)
    # the wrapper in C++ lets go of Python's lock, so that threads run side by side
    options = {"cpp_wrapper": True, "cpp.threads": 1} if example.device.type == "cpu" else {}
    program = torch.compile(graph, fullgraph=True, options=options)

    def call(x: Tensor) -> tuple[Tensor, Tensor]:
        torch._dynamo.mark_dynamic(x, 2)
        return program(x)

    return call


def _in_lanes(count: int) -> int:
    """The next multiple of the lanes."""
    return -(-count // _LANES) * _LANES


def _as_columns(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Positions (batch, n_atoms, 3) as columns, padded by copies of the last."""
    if missing := _in_lanes(len(x)) - len(x):
        x = torch.cat([x, x[-1:].expand(missing, -1, -1)])
    return x.permute(2, 1, 0).to(dtype, memory_format=torch.contiguous_format, copy=True)
