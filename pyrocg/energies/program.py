"""A potential as a program for whole batches: chunked, compiled, on every core."""

from __future__ import annotations

import os
import warnings
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

from pyrocg.energies.graphed import Graphed
from pyrocg.energies.terms import Potential

__all__ = ["Program", "chunk_size", "weighted"]

Columns = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Positions (3, n_atoms, batch) to energies (batch,) and gradients (3, n_atoms, batch)."""

_LANES = 16
"""Batches are padded to a multiple of this: the float32 numbers of an AVX-512 register."""
_SMALLEST_GROUP = 32
"""Configurations below which another thread costs more than it computes."""
_QUIET_NUMBERS = 2**15 - 1
"""Numbers up to which an operation of torch on the CPU stays on one thread."""
_PAIR_BYTES = {"cpu": 2**19, "other": 2**28}
"""Size of one array over all pairs and one chunk of a batch. Half a megabyte keeps the handful of
them in the second-level cache of a core; a GPU wants work."""
_GRAPHED = 16
"""Part of a chunk up to which a batch on a GPU is worth a CUDA graph."""
_MOST_NOTICED = 2**25 - 2**16
"""Bytes; the C library does not learn from larger ones."""


class Program:
    """Energies and gradients of batches, in the precision and on the device of a potential.

    The potential is compiled at the first call; if that fails, the program says so once and runs it
    uncompiled. Memory beyond that of the results is bounded, whatever the batch.

    On a GPU small batches of usual sizes become CUDA graphs
    (:class:`~pyrocg.energies.graphed.Graphed`). On the CPU compiled code runs on one thread, and a
    batch is shared among ``torch.get_num_threads()`` of them: they meet once per batch. Threads
    inside the code would meet after each of its twenty loops, and lose whenever another process
    holds a core. No operation around the code is large enough for torch to use OpenMP, whose idle
    threads spin.

    Args:
        potential: what to evaluate.
        dtype: the precision.
        device: where.
        compile: whether to compile.
    """

    def __init__(
        self, potential: Potential, dtype: torch.dtype, device: torch.device, compile: bool
    ) -> None:
        self._columns: Columns = potential.to(dtype, device).columns
        self._pending = compile
        self._device, self._dtype = device, dtype
        self._threaded = compile and device.type == "cpu"
        self._chunk = chunk_size(potential.n_atoms, dtype, device)
        if device.type == "cpu":
            _ask_to_keep()
        self._pool: ThreadPoolExecutor | None = None
        self._pool_of = (0, 0)

    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Energies (batch,) and gradients (batch, n_atoms, 3) of positions (batch, n_atoms, 3)."""
        if self._pending:
            self._compile(x)
        with torch.inference_mode(False):  # else no other mode may write into them
            energies = torch.empty(len(x), dtype=self._dtype, device=self._device)
            gradients = torch.empty(x.shape, dtype=self._dtype, device=self._device)
        chunks = self._chunks(x, energies, gradients)
        threads = torch.get_num_threads() if self._threaded else 1
        helping = min(threads, len(chunks)) - 1
        others = [self._threads(threads).submit(self._evaluate, chunks) for _ in range(helping)]
        self._evaluate(chunks)
        for other in others:
            other.result()
        return energies, gradients

    def _chunks(self, *tensors: Tensor) -> deque[tuple[Tensor, ...]]:
        """What is evaluated at once: positions, and where their results belong."""
        batch, size = len(tensors[0]), self._chunk
        if self._threaded:  # as many for every thread
            rounds = -(-batch // (size * torch.get_num_threads()))
            share = -(-batch // (rounds * torch.get_num_threads()))
            size = min(size, max(_SMALLEST_GROUP, _in_lanes(share)))
        return deque(zip(*(t.split(size) for t in tensors), strict=True))

    def _evaluate(self, chunks: deque[tuple[Tensor, ...]]) -> None:
        """Take chunks, which other threads take as well, until there are none."""
        # compiled code is kept by the modes it was made in, so there is one: neither mode
        with torch.inference_mode(False), torch.no_grad():
            while chunks:
                try:
                    x, energies, gradients = chunks.popleft()
                except IndexError:  # another thread was faster
                    return
                energy, gradient = self._columns(_as_columns(x, self._dtype))
                # an atom at infinity acts on none, but its energy is not known
                energies.copy_(energy[: len(x)] + (0.0 * x).sum((1, 2)))
                gradients.copy_(gradient[..., : len(x)].permute(2, 1, 0))

    def _compile(self, x: Tensor) -> None:
        eager = self._columns
        try:
            with warnings.catch_warnings(), torch.inference_mode(False), torch.no_grad():
                warnings.simplefilter("ignore")  # torch's own, from modules it imports on the way
                example = _as_columns(x[:1].expand(2 * _LANES, -1, -1), self._dtype)
                self._columns = compiled(eager, example)
                self._columns(_as_columns(x[:1], self._dtype))
            if self._device.type == "cuda":
                self._columns = Graphed(self._columns, largest=self._chunk // _GRAPHED)
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
            self._pool = ThreadPoolExecutor(threads - 1)
            self._pool.submit(_join_openmp)  # one team more: there are then more threads than cores
            self._pool_of = owner
        return self._pool


def chunk_size(n_atoms: int, dtype: torch.dtype, device: torch.device) -> int:
    """How many configurations are evaluated at once."""
    on_cpu = device.type == "cpu"
    pairs = max(1, n_atoms * (n_atoms // 2))
    fitting = _PAIR_BYTES["cpu" if on_cpu else "other"] // (pairs * dtype.itemsize)
    if on_cpu:
        fitting = min(fitting, _QUIET_NUMBERS // (3 * n_atoms))
    return max(_LANES, fitting // _LANES * _LANES)


def _ask_to_keep() -> None:
    """Let the C library keep freed memory for the next chunk.

    glibc gives free memory at the end of its heap back to the system beyond twice the largest array
    outside of the heap that it has seen freed. All the pages would then fault again in every chunk:
    for 252 atoms that took half as long as the computation.
    """
    torch.empty(_MOST_NOTICED, dtype=torch.uint8)


def weighted(gradients: Tensor, weights: Tensor, dtype: torch.dtype) -> Tensor:
    """Gradients (batch, n_atoms, 3) times weights (batch,), zero where the weight is.

    An infinite force times a zero weight would be NaN, but a capped energy means 0.
    """
    result = torch.empty(gradients.shape, dtype=dtype, device=gradients.device)
    size = max(1, _QUIET_NUMBERS // gradients[0].numel()) if result.device.type == "cpu" else None
    parts = gradients, weights.to(gradients.dtype).reshape(-1, 1, 1), result
    for gradient, weight, part in zip(*(t.split(size or len(t)) for t in parts), strict=True):
        part.copy_((weight * gradient).masked_fill_(weight == 0, 0.0))
    return result


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


def _join_openmp() -> None:
    """Let OpenMP know of a thread: where there are more than cores, its idle ones sleep at once.

    Otherwise, after each operation of torch that uses OpenMP, they spin for milliseconds on the
    cores that these threads need.
    """
    torch.zeros(4 * _QUIET_NUMBERS).add_(1.0)


def _in_lanes(count: int) -> int:
    """The next multiple of the lanes."""
    return -(-count // _LANES) * _LANES


def _as_columns(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Positions (batch, n_atoms, 3) as columns, padded by copies of the last."""
    if missing := _in_lanes(len(x)) - len(x):
        x = torch.cat([x, x[-1:].expand(missing, -1, -1)])
    return x.permute(2, 1, 0).to(dtype, memory_format=torch.contiguous_format, copy=True)
