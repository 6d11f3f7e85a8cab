"""What an energy costs: memory, and the time of each force against that of its arithmetic."""

from __future__ import annotations

import argparse
import multiprocessing
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import openmm
import torch
from energy_engines import CORES, DTYPES, GPU, Row, compiled_rows, context_rows, with_gradient
from energy_systems import built, structures
from energy_timing import burst, rates, warmed
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from pyrocg.energies.compiled import CompiledEnergy
from pyrocg.molecules import Molecule

GIB = 2**30


def memory(options: argparse.Namespace) -> None:
    """Peak bytes per configuration, each in a process of its own, and what fills a machine."""
    os.environ["MALLOC_MMAP_THRESHOLD_"] = "65536"  # what is freed goes back to the system at once
    device = "cuda" if GPU else "cpu"
    print(f"\n### memory, {device}, amber96-obc, energies and gradients\n")
    print(
        "| molecule | dtype | positions, bytes | peak bytes per configuration | workspace, MiB "
        "| batch that fills 24 GiB | 80 GiB |\n|---|---|---|---|---|---|---|"
    )
    context = multiprocessing.get_context("spawn")
    for name in options.molecules:
        for dtype in options.dtypes:
            n_atoms = built(name, "amber96-obc").n_atoms
            small = 2**25 // (3 * n_atoms * DTYPES[dtype].itemsize)  # 32 MiB of positions
            batches = [small, 2 * small] if device == "cpu" else [2**17, 2**18]
            with context.Pool(1) as pool:
                base, peaks = pool.apply(peak_bytes, (name, dtype, device, batches))
            slope = (peaks[1] - peaks[0]) / (batches[1] - batches[0])
            fixed = peaks[0] - slope * batches[0]
            fills = [f"{(gib * GIB - base - fixed) / slope:,.0f}" for gib in (24, 80)]
            own = 3 * n_atoms * DTYPES[dtype].itemsize
            cells = name, dtype, str(own), f"{slope:,.0f}", f"{fixed / 2**20:.1f}", *fills
            print("|", " | ".join(cells), "|", flush=True)


def peak_bytes(name: str, dtype: str, device: str, batches: list[int]) -> tuple[int, list[int]]:
    """Bytes in use before, and the peak above them at every batch size."""
    molecule = built(name, "amber96-obc")
    start = torch.from_numpy(structures(molecule, 1)).to(device, DTYPES[dtype])
    evaluate = with_gradient(CompiledEnergy(molecule), CORES)
    evaluate(start.repeat(4 * batches[0] // 64, 1, 1))
    base, peaks = _in_use(device)[0], []
    for batch in batches:
        before = _in_use(device, reset=True)[0]
        evaluate(start.repeat(batch, 1, 1))
        peaks.append(_in_use(device)[1] - before)
    return base, peaks


def _in_use(device: str, reset: bool = False) -> tuple[int, int]:
    """Bytes in use now, and at most since the last reset."""
    if device == "cuda":
        if reset:
            torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated(), torch.cuda.max_memory_allocated()
    if reset:
        Path("/proc/self/clear_refs").write_text("5")  # Linux: forget the peak
    lines = Path("/proc/self/status").read_text().splitlines()
    values = {line.split(":")[0]: line.split()[1] for line in lines if line.startswith("Vm")}
    return 1024 * int(values["VmRSS"]), 1024 * int(values["VmHWM"])


class Operations(TorchDispatchMode):
    """Counts elements computed by uncompiled code, by kind of operation."""

    kinds: ClassVar = {
        **{"sqrt": ("sqrt",), "rsqrt": ("sqrt", "div"), "reciprocal": ("div",), "div": ("div",)},
        **{"exp": ("exp",), "tanh": ("exp",), "log": ("log",), "atan2": ("log",)},
    }
    """What an operation costs as much as, where it is not simple; the last ones are few."""

    def __init__(self) -> None:
        super().__init__()
        self.counts = dict.fromkeys(("simple", "div", "sqrt", "exp", "log"), 0)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if name == "sum":
            self.counts["simple"] += args[0].numel()
        elif torch.Tag.pointwise in func.tags and not name.endswith("copy") and result.dim():
            for kind in self.kinds.get(name, ("simple",)):
                self.counts[kind] += result.numel()
        return result


def operations(molecule: Molecule) -> dict[str, float]:
    """Operations for one configuration as the terms are written, every pair once."""
    energy, x = CompiledEnergy(molecule, compile=False), torch.from_numpy(structures(molecule, 16))
    with Operations() as found:
        with_gradient(energy, 1)(x)
    return {kind: count / 16 for kind, count in found.counts.items()}


def unit_costs() -> dict[str, float]:
    """Seconds for one float32 operation of each kind on one core, compiled, out of registers."""
    simple = 0.5 * _step_cost(lambda y: y * 0.999 + 1e-3)
    return {
        "simple": simple,
        "div": _step_cost(lambda y: 1.5 / y),
        "sqrt": _step_cost(torch.sqrt),
        "exp": _step_cost(lambda y: torch.exp(-y)) - simple,
        "log": _step_cost(lambda y: torch.log(y + 1.5)) - simple,
    }


def _step_cost(step: Callable[[Tensor], Tensor]) -> float:
    """Seconds for one element of a step."""

    def work(x: Tensor) -> Tensor:
        chains = [x, x + 1.0, x + 2.0, x + 3.0]  # independent, to fill the pipelines
        for _ in range(16):
            chains = [step(y) for y in chains]
        return chains[0] + chains[1] + chains[2] + chains[3]

    torch.set_num_threads(1)
    torch._dynamo.reset()
    program, x = torch.compile(work, dynamic=False), 0.5 + torch.rand(2**17)
    row = Row("", "1", "float32", x, lambda x: (program(x), None))
    row.run()
    # the fastest of many: what the processor can do, not what it was left
    best = max(b.rate / b.cores for b in (burst(row, 0.02) for _ in range(30)))
    return 1.0 / best / 64


def profile(options: argparse.Namespace) -> None:
    """Time of every force alone on one core, against what its arithmetic would take at best."""
    units = unit_costs()
    print("\n### profile, float32, one core\n")
    print(
        "cost of one operation, ps: " + ", ".join(f"{k} {1e12 * v:.0f}" for k, v in units.items())
    )
    for name in options.profiled:
        for family in ("amber96-obc", "ff14SB-gbn2"):
            print(f"\n{name}, {family}\n")
            print("| force | us | arithmetic at best, us | operations | Reference Context, us |")
            print("|---|---|---|---|---|")
            for label, molecule in by_force(built(name, family)):
                reference = next(context_rows(molecule))
                engine = next(compiled_rows(molecule, options.batch, ["float32"]))
                warmed([reference, engine])
                rows = [reference, engine]
                found = rates(rows, options.rounds, options.seconds)
                slow, fast = (r.rate / r.cores for r in found)
                counts = operations(molecule)
                floor = sum(units[kind] * count for kind, count in counts.items())
                cells = f"{1e6 / fast:.1f}", f"{1e6 * floor:.1f}", f"{sum(counts.values()):,.0f}"
                print(f"| {label} |", " | ".join(cells), f"| {1e6 / slow:.1f} |", flush=True)


def by_force(molecule: Molecule) -> Iterator[tuple[str, Molecule]]:
    """The molecule with all its forces, then with one at a time."""
    yield "all", molecule
    for kept in range(molecule.system.getNumForces()):
        system = openmm.XmlSerializer.deserialize(openmm.XmlSerializer.serialize(molecule.system))
        for index in reversed(range(system.getNumForces())):
            if index != kept:
                system.removeForce(index)
        label = type(molecule.system.getForce(kept)).__name__
        yield label, Molecule(label, molecule.topology, system, molecule.positions)
