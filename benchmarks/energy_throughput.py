"""How many energies and gradients per second does each engine give, side by side in one run?

    python benchmarks/energy_throughput.py
    python benchmarks/energy_throughput.py --molecule AAAAAA --batches 64 --threads 1

The baseline is a loop over one OpenMM Context on the Reference platform, on one core. Engines take
turns in rounds, so that other load on the machine meets all of them, and the best round counts.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import openmm
import torch
from torch import Tensor

from pyrocg.energies.abstract import Energy
from pyrocg.energies.compiled import CompiledEnergy
from pyrocg.energies.contexts import BatchContext, ContextSetup
from pyrocg.energies.openmm import OpenMMEnergy
from pyrocg.molecules import Molecule, alanine_dipeptide, peptide

DTYPES = {"float32": torch.float32, "float64": torch.float64}
FORCEFIELD = ("amber96.xml", "amber96_obc.xml")


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    engine: str
    threads: int
    batch: int
    dtype: str
    run: Callable[[], object]


def structures(molecule: Molecule, batch: int) -> np.ndarray:
    """Thermal-like structures: the reference one with 5 pm of noise."""
    noise = np.random.default_rng(0).standard_normal((batch, molecule.n_atoms, 3))
    return molecule.positions + 0.005 * noise


def step(energy: Energy, x: Tensor) -> Tensor:
    """Energies and their gradient, as one training step asks for them."""
    x = x.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(energy(x).sum(), x)
    return gradient


def with_threads(threads: int, run: Callable[[], object]) -> Callable[[], object]:
    """The same work on a number of torch threads."""

    def limited() -> object:
        torch.set_num_threads(threads)
        return run()

    return limited


def rows(molecule: Molecule, options: argparse.Namespace) -> list[Row]:
    """The baseline first, then every engine, thread count, dtype and batch size."""
    setup = ContextSetup(openmm.XmlSerializer.serialize(molecule.system), "Reference", {})
    context, sample = BatchContext(setup), structures(molecule, 64)
    table = [Row("Reference loop", 1, 64, "float64", lambda: context.evaluate(sample, True))]
    engines: list[tuple[str, Energy]] = [
        ("eager", CompiledEnergy(molecule, compile=False)),
        *((f"compiled ({n})", CompiledEnergy(molecule)) for n in options.threads),
    ]
    workers = max(options.threads)
    pool = OpenMMEnergy(molecule, platform="Reference", workers=workers)
    for batch in options.batches:
        x = torch.from_numpy(structures(molecule, batch))
        run = with_threads(1, lambda x=x: step(pool, x))
        table.append(Row("OpenMMEnergy, Reference", workers, batch, "float64", run))
        for threads in options.threads:
            for dtype in options.dtypes:
                for name, energy in engines:
                    if name in ("eager", f"compiled ({threads})"):
                        y = x.to(DTYPES[dtype])
                        run = with_threads(threads, lambda e=energy, y=y: step(e, y))
                        table.append(Row(name.split(" ")[0], threads, batch, dtype, run))
    return table


def rates(table: list[Row], rounds: int, seconds: float) -> list[float]:
    """Configurations per second of every row, the best of several rounds."""
    best = [0.0] * len(table)
    for row in table:
        start = time.perf_counter()
        row.run()
        if (first := time.perf_counter() - start) > 2:
            print(f"first call of {row.engine}, {row.dtype}: {first:.1f} s")
    for _ in range(rounds):
        for i, row in enumerate(table):
            row.run()
            count, start = 0, time.perf_counter()
            while (elapsed := time.perf_counter() - start) < seconds / rounds:
                row.run()
                count += row.batch
            best[i] = max(best[i], count / elapsed)
    return best


def report(molecule: Molecule, options: argparse.Namespace) -> None:
    """Measure and print one table."""
    table = rows(molecule, options)
    found = rates(table, options.rounds, options.seconds)
    print(f"\n{molecule.name}, {molecule.n_atoms} atoms, torch {torch.__version__}")
    print("| engine | threads | batch | dtype | configurations/s | x Reference loop |")
    print("|---|---|---|---|---|---|")
    for row, rate in zip(table, found, strict=True):
        cells = (row.engine, row.threads, row.batch, row.dtype, f"{rate:,.0f}")
        print("|", " | ".join(map(str, cells)), f"| {rate / found[0]:.1f} |")


def main() -> None:
    """Read the options and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--molecule", default="alanine-dipeptide", help="or a sequence: AAAAAA")
    parser.add_argument("--forcefield", nargs="+", default=FORCEFIELD)
    parser.add_argument("--batches", type=int, nargs="+", default=[64, 256, 1024])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=list(DTYPES))
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=1.0, help="per row")
    options = parser.parse_args()
    named = options.molecule == "alanine-dipeptide"
    report(alanine_dipeptide() if named else peptide(options.molecule, options.forcefield), options)


if __name__ == "__main__":
    main()
