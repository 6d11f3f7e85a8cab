"""Engines that give energies and forces, each with the batch that it is timed on."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
import openmm
import torch
from energy_systems import structures
from torch import Tensor

from pyrocg.energies.abstract import Energy
from pyrocg.energies.compiled import CompiledEnergy
from pyrocg.energies.contexts import BatchContext, ContextSetup
from pyrocg.energies.copies import CopiesEnergy
from pyrocg.energies.openmm import OpenMMEnergy, gpu_platform
from pyrocg.molecules import Molecule

DTYPES = {"float32": torch.float32, "float64": torch.float64}
CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
GPU = torch.cuda.is_available()
GPU_BATCHES = (1024, 8192, 65536)
Evaluate = Callable[[Any], tuple[Any, Any]]
"""Energies and forces of one batch, in whatever arrays the engine speaks."""


@dataclass(frozen=True)
class Row:
    """One line of the table: an engine and the batch that it is timed on."""

    engine: str
    cores: str
    dtype: str
    x: Any
    evaluate: Evaluate

    def run(self) -> None:
        self.evaluate(self.x)


def with_gradient(energy: Energy, threads: int) -> Evaluate:
    """Energies and forces as a training step asks for them, on a number of torch threads."""

    def evaluate(x: Tensor) -> tuple[Tensor, Tensor]:
        torch.set_num_threads(threads)
        x = x.detach().requires_grad_()
        energies = energy(x)
        (gradient,) = torch.autograd.grad(energies.sum(), x)
        if x.is_cuda:
            torch.cuda.synchronize()
        return energies.detach(), -gradient

    return evaluate


def setup_of(molecule: Molecule, platform: str, **properties: str) -> ContextSetup:
    return ContextSetup(openmm.XmlSerializer.serialize(molecule.system), platform, properties)


class QueueWorkers:
    """Processes with a Context each that take one configuration at a time from a queue.

    That is how bgflow's OpenMMBridge shares a batch; processes, by fork where there is one, and
    queues are those of multiprocessing.
    """

    def __init__(self, setup: ContextSetup, workers: int) -> None:
        fork = "fork" in multiprocessing.get_all_start_methods()
        context: Any = multiprocessing.get_context("fork" if fork else "spawn")
        self._tasks, self._results = context.Queue(), context.Queue()
        arguments = setup, self._tasks, self._results
        self._workers = [
            context.Process(target=_serve, args=arguments, daemon=True) for _ in range(workers)
        ]
        for worker in self._workers:
            worker.start()

    def evaluate(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Energies (batch,) and forces (batch, n_atoms, 3) of positions (batch, n_atoms, 3)."""
        for task in enumerate(x):
            self._tasks.put(task)
        results = sorted((self._results.get() for _ in x), key=lambda result: result[0])
        return np.array([r[1] for r in results]), np.array([r[2] for r in results])

    def __enter__(self) -> QueueWorkers:
        return self

    def __exit__(self, *_: object) -> None:
        for _worker in self._workers:
            self._tasks.put(None)
        for worker in self._workers:
            worker.join()


def _serve(setup: ContextSetup, tasks: Any, results: Any) -> None:
    system = openmm.XmlSerializer.deserialize(setup.system_xml)
    platform = openmm.Platform.getPlatformByName(setup.platform)
    integrator = openmm.VerletIntegrator(0.001)
    context = openmm.Context(system, integrator, platform, setup.properties)
    for index, positions in iter(tasks.get, None):
        context.setPositions(positions)
        state = context.getState(energy=True, forces=True)
        forces = state.getForces(asNumpy=True)._value
        results.put((index, state.getPotentialEnergy()._value, forces))


def context_rows(molecule: Molecule) -> Iterator[Row]:
    """A loop over one Context on every platform that works; Reference, the baseline, is first."""
    names = [
        openmm.Platform.getPlatform(i).getName() for i in range(openmm.Platform.getNumPlatforms())
    ]
    sample = structures(molecule, max(2, 352 // molecule.n_atoms))
    for name in sorted(names, key=lambda name: name != "Reference"):
        threads = sorted({1, CORES}) if name == "CPU" else [0]
        for count in threads:
            properties = {"Threads": str(count)} if count else {}
            try:
                context = BatchContext(setup_of(molecule, name, **properties))
            except openmm.OpenMMException as error:
                print(f"platform {name} does not work here: {error}")
                continue
            cores = str(count or 1) if name in ("Reference", "CPU") else "GPU"
            dtype = "float64" if name == "Reference" else "float32"
            evaluate = lambda x, context=context: context.evaluate(x, True)  # noqa: E731
            yield Row(f"one Context, {name}", cores, dtype, sample, evaluate)


def pool_rows(molecule: Molecule, batch: int, stack: ExitStack) -> Iterator[Row]:
    """The package's own pool, and processes behind a queue on the same CPU platform.

    Batches of large molecules are smaller: these engines gain nothing from large ones.
    """
    pool = OpenMMEnergy(molecule)
    x = structures(molecule, max(32, min(batch, 5632 // molecule.n_atoms)))
    dtype = "float64" if pool.platform == "Reference" else "float32"
    cores = "GPU" if pool.platform not in ("Reference", "CPU") else str(pool.workers)
    name = f"OpenMMEnergy, {pool.platform}"
    yield Row(name, cores, dtype, torch.from_numpy(x), with_gradient(pool, 1))
    platform, properties = pool.platform, {}
    if platform != "Reference":
        platform, properties = "CPU", {"Threads": "1"}
    dtype = "float64" if platform == "Reference" else "float32"
    setup = setup_of(molecule, platform, **properties)
    workers = stack.enter_context(QueueWorkers(setup, CORES))
    name = f"processes and a queue, {platform}"
    yield Row(name, str(CORES), dtype, x, workers.evaluate)


def compiled_rows(molecule: Molecule, batch: int, dtypes: list[str]) -> Iterator[Row]:
    """The compiled engine on one core, on all, and on the GPU."""
    energy = CompiledEnergy(molecule)
    for dtype in dtypes:
        x = torch.from_numpy(structures(molecule, batch)).to(DTYPES[dtype])
        for threads in sorted({1, CORES}):
            yield Row("CompiledEnergy", str(threads), dtype, x, with_gradient(energy, threads))
        for size in GPU_BATCHES if GPU else ():
            y = x[:1].expand(size, -1, -1).contiguous().cuda()
            yield Row("CompiledEnergy", "GPU", dtype, y, with_gradient(energy, 1))


def copies_rows(molecule: Molecule) -> Iterator[Row]:
    """Forces of many copies in one Context, on a GPU."""
    if platform := gpu_platform():
        energy = CopiesEnergy(molecule, platform)
        x = structures(molecule, 4 * energy.copies)
        evaluate = lambda x: (None, energy.forces(x))  # noqa: E731
        yield Row("copies, forces alone", "GPU", "float64", x, evaluate)
