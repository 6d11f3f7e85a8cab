"""How many energies and forces per second does each engine give, side by side in one run?

    python benchmarks/energy_throughput.py
    python benchmarks/energy_throughput.py --quick
    python benchmarks/energy_throughput.py --parts size --figure benchmarks/figures/energy_size.png

Three molecules under several force fields; the baseline is a loop over one OpenMM Context on the
Reference platform, on one core. Every other engine is timed in short bursts that alternate with
bursts of the baseline, and the medians over rounds are printed, so that other load on the machine
meets both. OpenMM's platforms and a GPU are used where they are found; nothing is switched on by
hand. The other parts: cost against size, memory, and a profile by force.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import openmm
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from pyrocg.energies.abstract import Energy
from pyrocg.energies.compiled import CompiledEnergy
from pyrocg.energies.contexts import BatchContext, ContextSetup
from pyrocg.energies.conversion import UnsupportedForceError
from pyrocg.energies.openmm import OpenMMEnergy
from pyrocg.molecules import Molecule, peptide

MOLECULES = {"ALA-2": ("A", True), "ALA-6": ("AAAAA", True), "chignolin": ("GYDPETGTWG", False)}
"""Sequence, and whether it has caps. Chignolin is an extended strand, minimised: with all pairs
computed, the fold costs nothing."""
FAMILIES = {
    "amber96-obc": ("amber96.xml", "amber96_obc.xml"),
    "ff14SB-obc2": ("amber14-all.xml", "implicit/obc2.xml"),
    "ff14SB-gbn2": ("amber14-all.xml", "implicit/gbn2.xml"),
    "ff19SB-gbn2": ("amber19-all.xml", "implicit/gbn2.xml"),
    "charmm36-obc2": ("charmm36_2024.xml", "implicit/obc2.xml"),
}
ALANINES = (0, 1, 3, 6, 12, 24, 48)
"""n in ACE-(ALA)n-NME, 12 + 10 n atoms."""
DTYPES = {"float32": torch.float32, "float64": torch.float64}
CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
GPU = torch.cuda.is_available()
GPU_BATCHES = (1024, 8192, 65536)
GIB = 2**30
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


def structures(molecule: Molecule, batch: int) -> np.ndarray:
    """The reference structure with 5 pm of noise, exact in float32 so that all see the same."""
    noise = np.random.default_rng(0).standard_normal((batch, molecule.n_atoms, 3))
    return (molecule.positions + 0.005 * noise).astype(np.float32).astype(np.float64)


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


# Throughput.


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


def warmed(rows: list[Row]) -> list[float]:
    """Seconds that the first call of every row takes, with compilation and the start of workers."""
    seconds = []
    for row in rows:
        start = time.perf_counter()
        row.run()
        seconds.append(time.perf_counter() - start)
        row.run()
    return seconds


class Burst(NamedTuple):
    """What was done in a short while."""

    rate: float
    """Configurations per second."""
    cores: float
    """Processor time per time, fewer cores than asked for on a busy machine."""


def burst(row: Row, seconds: float) -> Burst:
    """Run a row until some time has passed."""
    count, start, busy = 0, time.perf_counter(), processor_time()
    while True:
        row.run()
        count += len(row.x)
        if (elapsed := time.perf_counter() - start) >= seconds:
            return Burst(count / elapsed, (processor_time() - busy) / elapsed)


def processor_time() -> float:
    """Seconds that this process and those that it started have computed; on Linux."""
    total = time.process_time()
    for listed in Path("/proc/self/task").glob("*/children"):
        for child in listed.read_text().split():
            for thread in Path(f"/proc/{child}/task").glob("*/schedstat"):
                total += 1e-9 * int(thread.read_text().split()[0])
    return total


class Rate(NamedTuple):
    """Medians over rounds."""

    rate: float
    """Configurations per second."""
    ratio: float
    """To the baseline, timed just before."""
    cores: float
    """Cores that the engine got."""
    core_ratio: float
    """Configurations per second of processor time, to the baseline's."""


def rates(rows: list[Row], rounds: int, seconds: float) -> list[Rate]:
    """The rate of every row, in turn with the first, the baseline."""
    found: list[list[Rate]] = [[] for _ in rows]
    for _ in range(rounds):
        for row, results in zip(rows, found, strict=True):
            base = burst(rows[0], seconds)
            mine = base if row is rows[0] else burst(row, seconds)
            ratio, share = mine.rate / base.rate, base.cores / mine.cores
            results.append(Rate(mine.rate, ratio, mine.cores, ratio * share))
    return [Rate(*map(statistics.median, zip(*results, strict=True))) for results in found]


def errors(row: Row, x: np.ndarray, expected: tuple[Any, Any]) -> tuple[float, float]:
    """Largest relative errors of energies and forces.

    Differences of energies are divided by the mean absolute energy, those of force components by
    the configuration's largest.
    """
    energies, forces = expected
    y = torch.from_numpy(x).to(row.x) if isinstance(row.x, Tensor) else x
    got = [np.asarray(torch.as_tensor(a).cpu(), dtype=np.float64) for a in row.evaluate(y)]
    of_energy = np.abs(got[0] - energies).max() / np.abs(energies).mean()
    scale = np.abs(forces).max(axis=(1, 2))
    return of_energy, (np.abs(got[1] - forces).max(axis=(1, 2)) / scale).max()


def throughput(options: argparse.Namespace) -> None:
    """One table for every molecule and force field."""
    for name in options.molecules:
        for family in options.families:
            try:
                molecule = built(name, family)
            except ValueError as error:
                print(f"\n{name}, {family}: left out, {short(error)}")
                continue
            print(f"\n### {name}, {molecule.n_atoms} atoms, {family}\n")
            throughput_table(molecule, options)


def throughput_table(molecule: Molecule, options: argparse.Namespace) -> None:
    """Measure and print one table."""
    with ExitStack() as stack:
        rows = list(context_rows(molecule)) + list(pool_rows(molecule, options.batch, stack))
        try:
            rows += list(compiled_rows(molecule, options.batch, options.dtypes))
        except UnsupportedForceError as error:
            print(f"not compiled: {short(error)}\n")
        first = warmed(rows)
        print(
            "| engine | cores | batch | dtype | configurations/s | ratio | cores got "
            "| ratio per core | error E | error F | first call, s |\n|" + 11 * "---|"
        )
        found = rates(rows, options.rounds, options.seconds)
        x = structures(molecule, 16)
        expected = rows[0].evaluate(x)
        for row, result, seconds in zip(rows, found, first, strict=True):
            cells = row.engine, row.cores, str(len(row.x)), row.dtype, f"{result.rate:,.0f}"
            ratios = f"{result.ratio:.2f}", f"{result.cores:.2f}", f"{result.core_ratio:.2f}"
            of_energy, of_force = errors(row, x, expected)
            accuracy = f"{of_energy:.0e}", f"{of_force:.0e}", f"{seconds:.1f}"
            print("|", " | ".join((*cells, *ratios, *accuracy)), "|", flush=True)


def built(name: str, family: str) -> Molecule:
    sequence, caps = MOLECULES[name]
    return peptide(sequence, FAMILIES[family], caps)


def short(error: Exception) -> str:
    return str(error).split(";")[0][:150]


# Cost against size.


def polyalanine(n: int, family: str) -> Molecule:
    """ACE-(ALA)n-NME."""
    if n == 0:
        data = Path(__file__).with_name("data") / "ace-nme.pdb"
        return Molecule.from_pdb(data, FAMILIES[family])
    return peptide("A" * n, FAMILIES[family])


def size(options: argparse.Namespace) -> None:
    """One core of the compiled engine against one Context, from 12 to 492 atoms."""
    family = options.size_family
    print(f"\n### cost against size, ACE-(ALA)n-NME, {family}, float32, one core\n")
    print(
        "| atoms | Reference Context, us | CPU Context, us | CompiledEnergy, us | x Reference "
        "| x CPU | first call, s |\n|---|---|---|---|---|---|---|"
    )
    table = []
    for n in ALANINES[: 4 if options.quick else None]:
        molecule = polyalanine(n, family)
        contexts = [r for r in context_rows(molecule) if r.cores == "1"]
        batch = max(32, min(options.batch, 200_000 // molecule.n_atoms**2 * 16))
        (engine,) = [r for r in compiled_rows(molecule, batch, ["float32"]) if r.cores == "1"]
        rows = [*contexts, engine]
        first = warmed(rows)[-1]
        found = rates(rows, options.rounds, options.seconds)
        costs = [1e6 * result.cores / result.rate for result in found]
        table.append((molecule.n_atoms, *costs))
        cells = [f"{cost:,.1f}" for cost in costs]
        ratios = f"{found[-1].core_ratio:.1f} | {costs[1] / costs[2]:.1f}"
        print(
            f"| {molecule.n_atoms} |", " | ".join(cells), f"| {ratios} | {first:.0f} |", flush=True
        )
    if options.figure:
        draw(np.array(table), family, options.figure)


def draw(table: np.ndarray, family: str, path: Path) -> None:
    """Time per configuration against the number of atoms, on logarithmic axes."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes = figure.subplots()
    labels = "one Context, Reference", "one Context, CPU platform", "CompiledEnergy, float32"
    for label, marker, column in zip(labels, "os^", table.T[1:], strict=True):
        axes.loglog(table[:, 0], column, marker=marker, markersize=5, label=label)
    axes.set_xlabel("number of atoms")
    axes.set_ylabel("processor time per configuration (µs)")
    axes.set_title(f"Energy and forces of ACE-(ALA)n-NME, {family}, one core", fontsize=11)
    ticks = [12, 25, 50, 100, 200, 500]
    axes.set_xticks(ticks, [str(t) for t in ticks])
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    print(f"\nfigure in {path}")


# Memory.


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
            batches = [8192, 16384] if device == "cpu" else [2**17, 2**18]
            with context.Pool(1) as pool:
                n_atoms, base, peaks = pool.apply(peak_bytes, (name, dtype, device, batches))
            slope = (peaks[1] - peaks[0]) / (batches[1] - batches[0])
            fixed = peaks[0] - slope * batches[0]
            fills = [f"{(gib * GIB - base - fixed) / slope:,.0f}" for gib in (24, 80)]
            own = 3 * n_atoms * DTYPES[dtype].itemsize
            cells = name, dtype, str(own), f"{slope:,.0f}", f"{fixed / 2**20:.1f}", *fills
            print("|", " | ".join(cells), "|", flush=True)


def peak_bytes(
    name: str, dtype: str, device: str, batches: list[int]
) -> tuple[int, int, list[int]]:
    """Atoms, bytes in use before, and the peak above them at every batch size."""
    molecule = built(name, "amber96-obc")
    start = torch.from_numpy(structures(molecule, 1)).to(device, DTYPES[dtype])
    evaluate = with_gradient(CompiledEnergy(molecule), CORES)
    evaluate(start.repeat(4 * batches[0] // 64, 1, 1))
    base, peaks = _in_use(device)[0], []
    for batch in batches:
        before = _in_use(device, reset=True)[0]
        evaluate(start.repeat(batch, 1, 1))
        peaks.append(_in_use(device)[1] - before)
    return molecule.n_atoms, base, peaks


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


# Profile.


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
    """Operations for one configuration as the terms are written, all n^2 ordered pairs."""
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


# Command line.

PARTS = {"throughput": throughput, "size": size, "memory": memory, "profile": profile}


def hardware() -> str:
    """One line on the machine and the versions."""
    path, model = Path("/proc/cpuinfo"), "unknown processor"
    lines = path.read_text().splitlines() if path.exists() else []
    model = next((line.split(":")[1].strip() for line in lines if "model name" in line), model)
    gpu = torch.cuda.get_device_name() if GPU else "no GPU"
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else float("nan")
    versions = f"torch {torch.__version__}, OpenMM {openmm.__version__}"
    return f"{CORES} cores of {model}, {gpu}; {versions}; load {load:.1f} at the start"


def options_from(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="3 rounds, fewer systems")
    parser.add_argument(
        "--parts", nargs="+", choices=PARTS, default=["throughput", "size", "memory"]
    )
    parser.add_argument("--molecules", nargs="+", choices=MOLECULES, default=list(MOLECULES))
    families = [family for family in FAMILIES if family != "ff19SB-gbn2"]
    parser.add_argument("--families", nargs="+", choices=FAMILIES, default=families)
    parser.add_argument("--size-family", choices=FAMILIES, default="amber96-obc")
    parser.add_argument("--profiled", nargs="+", choices=MOLECULES, default=["ALA-6", "chignolin"])
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=list(DTYPES))
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=0.12, help="of one burst")
    parser.add_argument("--figure", type=Path, help="PNG of cost against size")
    parser.add_argument("--warm-cache", action="store_true", help="keep the compiler's own cache")
    options = parser.parse_args(arguments)
    if options.quick:
        options.rounds, options.families, options.dtypes = 3, options.families[:2], ["float32"]
    return options


def main() -> None:
    """Measure and print."""
    options = options_from()
    print(hardware())
    with ExitStack() as stack:
        if not options.warm_cache:
            cache = stack.enter_context(tempfile.TemporaryDirectory(ignore_cleanup_errors=True))
            os.environ["TORCHINDUCTOR_CACHE_DIR"] = cache
        for part in options.parts:
            PARTS[part](options)


if __name__ == "__main__":
    main()
