"""OpenMM Contexts that evaluate batches, in this process and in worker processes beside it.

Run as a script, this file is a worker: it needs only NumPy and OpenMM, so it starts in a fraction
of the time of ``import torch``, and it never imports the user's ``__main__``, so scripts need no
``if __name__ == "__main__"`` guard.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import subprocess
import sys
import threading
import weakref
from dataclasses import dataclass
from typing import Any

import numpy as np

__all__ = ["BatchContext", "ContextPool", "ContextSetup"]


@dataclass(frozen=True)
class ContextSetup:
    """What a Context is made of, as plain text that travels to another process.

    Args:
        system_xml: the serialized OpenMM System.
        platform: name of the OpenMM platform.
        properties: platform properties, name -> value.
    """

    system_xml: str
    platform: str
    properties: dict[str, str]


class BatchContext:
    """One Context that evaluates configurations one after the other.

    Args:
        setup: the System, its platform and the platform's properties.
    """

    def __init__(self, setup: ContextSetup) -> None:
        import openmm

        system = openmm.XmlSerializer.deserialize(setup.system_xml)
        platform = openmm.Platform.getPlatformByName(setup.platform)
        self._context = openmm.Context(
            system, openmm.VerletIntegrator(0.001), platform, setup.properties
        )

    def evaluate(self, x: np.ndarray, forces: bool) -> tuple[np.ndarray, np.ndarray | None]:
        """Energies (batch,) in kJ/mol and, if asked for, forces (batch, n_atoms, 3) in kJ/mol/nm.

        Configurations with a NaN or infinite position are NaN and never reach OpenMM, whose
        platforms disagree on them.
        """
        energies = np.full(len(x), np.nan)
        gradients = np.full(x.shape, np.nan) if forces else None
        context = self._context
        for i in np.flatnonzero(np.isfinite(x).all(axis=(1, 2))):
            context.setPositions(x[i])
            state = context.getState(energy=True, forces=forces)
            energies[i] = state.getPotentialEnergy()._value
            if gradients is not None:
                gradients[i] = state.getForces(asNumpy=True)._value
        return energies, gradients


class ContextPool:
    """Contexts in this process and in ``workers - 1`` others, which share every large batch.

    The worker processes start with the first batch that is worth it, read their requests from a
    pipe and end with this process, however it ends: a closed pipe is their signal. An interrupted
    or failed evaluation drops them, and the next batch starts new ones.

    Args:
        setup: what every Context is made of.
        workers: how many processes compute, this one included.
    """

    smallest_share = 16
    """Configurations below which a share costs more to send than to compute."""

    def __init__(self, setup: ContextSetup, workers: int) -> None:
        self._setup = setup
        self._workers = workers
        self._local: BatchContext | None = None
        self._lock = threading.Lock()
        self._processes: list[_WorkerProcess] = []
        self.owner = os.getpid()
        weakref.finalize(self, _close, self._processes, self.owner)

    def evaluate(self, x: np.ndarray, forces: bool) -> tuple[np.ndarray, np.ndarray | None]:
        """Energies (batch,) and forces (batch, n_atoms, 3) or None; x is float64, contiguous."""
        count = min(self._workers, max(1, len(x) // self.smallest_share))
        shares = np.array_split(x, count)
        with self._lock:
            try:
                results = self._evaluate_shares(shares, forces)
            except BaseException:
                _close(self._processes, self.owner)  # a late reply must not answer a new request
                raise
        energies = np.concatenate([e for e, _ in results])
        if not forces:
            return energies, None
        return energies, np.concatenate([f for _, f in results if f is not None])

    def _evaluate_shares(
        self, shares: list[np.ndarray], forces: bool
    ) -> list[tuple[np.ndarray, np.ndarray | None]]:
        while len(self._processes) < len(shares) - 1:
            self._processes.append(_WorkerProcess(self._setup))
        busy = self._processes[: len(shares) - 1]
        for process, share in zip(busy, shares[1:], strict=True):
            process.send((share, forces))
        if self._local is None:
            self._local = BatchContext(self._setup)
        own = self._local.evaluate(shares[0], forces)
        return [own, *(process.receive() for process in busy)]


class _WorkerProcess:
    """The parent's end of one worker: requests down its stdin, replies up its stdout."""

    def __init__(self, setup: ContextSetup) -> None:
        # -P: this folder holds an openmm.py, which must not shadow the real one
        self._process = subprocess.Popen(
            [sys.executable, "-P", __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            process_group=0,  # a Ctrl-C in the terminal is for the parent to handle
        )
        self.send((setup.system_xml, setup.platform, setup.properties))

    def send(self, message: Any) -> None:
        assert self._process.stdin is not None
        try:
            pickle.dump(message, self._process.stdin, protocol=5)
            self._process.stdin.flush()
        except BrokenPipeError:
            raise self._ended() from None

    def receive(self) -> tuple[np.ndarray, np.ndarray | None]:
        assert self._process.stdout is not None
        try:
            reply = pickle.load(self._process.stdout)
        except (EOFError, pickle.UnpicklingError):
            raise self._ended() from None
        if isinstance(reply, str):
            raise RuntimeError(f"an OpenMM worker process failed: {reply}")
        return reply

    def close(self) -> None:
        self._process.kill()  # it holds no state, and may be in the middle of a long batch
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            with contextlib.suppress(BrokenPipeError):  # what is still buffered has no reader left
                pipe.close()

    def _ended(self) -> RuntimeError:
        self._process.kill()
        return RuntimeError(
            f"an OpenMM worker process ended with exit code {self._process.wait()}; "
            "its messages are on stderr. Use workers=1 to evaluate in this process"
        )


def _close(processes: list[_WorkerProcess], owner: int) -> None:
    if os.getpid() == owner:  # a forked child must not end its parent's workers
        while processes:
            processes.pop().close()


def _serve() -> None:
    """Answer requests on stdin until it closes."""
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever a library prints must not end up among the replies
    requests = sys.stdin.buffer
    context: BatchContext | None = None
    try:
        setup = ContextSetup(*pickle.load(requests))
        while True:
            x, forces = pickle.load(requests)
            reply: Any
            try:
                context = context or BatchContext(setup)
                reply = context.evaluate(x, forces)
            except Exception as error:
                reply = " ".join(f"{type(error).__name__}: {error}".split())
            pickle.dump(reply, replies, protocol=5)
            replies.flush()
    except (EOFError, BrokenPipeError, KeyboardInterrupt, pickle.UnpicklingError):
        os._exit(0)  # the parent is gone: nobody is left to flush to


if __name__ == "__main__":
    _serve()
