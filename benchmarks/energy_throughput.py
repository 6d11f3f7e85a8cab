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
import os
import tempfile
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import openmm
import torch
from energy_costs import memory, profile
from energy_engines import CORES, DTYPES, GPU, compiled_rows, context_rows, copies_rows, pool_rows
from energy_systems import ALANINES, FAMILIES, MOLECULES, built, polyalanine, structures
from energy_timing import errors, rates, warmed

from pyrocg.energies.conversion import UnsupportedForceError
from pyrocg.molecules import Molecule


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
            rows += list(copies_rows(molecule))
        except UnsupportedForceError as error:
            print(f"left out: {short(error)}\n")
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


def short(error: Exception) -> str:
    return str(error).split(";")[0][:150]


def size(options: argparse.Namespace) -> None:
    """One core of the compiled engine against one Context, from 12 to 492 atoms."""
    family = options.size_family
    print(f"\n### cost against size, ACE-(ALA)n-NME, {family}, float32, one core\n")
    print(
        "| atoms | Reference Context, us | CPU Context, us | CompiledEnergy, us | x Reference "
        "| x CPU | first call, s |\n|---|---|---|---|---|---|---|"
    )
    table = []
    for n in options.alanines[: 4 if options.quick else None]:
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
    parser.add_argument("--alanines", nargs="+", type=int, default=list(ALANINES))
    parser.add_argument("--profiled", nargs="+", choices=MOLECULES, default=["ALA-6", "chignolin"])
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=list(DTYPES))
    parser.add_argument("--batch", type=int, default=1024)
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
