"""An independent reference for alanine dipeptide: biased replica-exchange Langevin dynamics.

Run: python benchmarks/reference.py --forcefield amber96-obc --temperature 330 --out NAME

The torsion phi is biased towards the left-handed basin (a cosine, 15 kJ/mol deep), so that this
basin of a few permille is seen as often as the others; the weights take the bias out again. Writes
NAME.json (averages with error bars) and NAME.npz (histogram of phi and psi, averages of each
ladder, structures of equal weight). With --checkpoint a run that was stopped goes on.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch

import pyrocg
from pyrocg import geometry, observables
from pyrocg.averages import Average
from pyrocg.checkpoint import write_atomically
from pyrocg.langevin import TorsionBias, repartitioned_masses, temperature_ladder
from pyrocg.reference import Reference, replica_exchange

BINS = 100


def main() -> None:
    options = parse()
    torch.set_num_threads(1)
    molecule = pyrocg.alanine_dipeptide(options.forcefield)
    reference = simulate(options, molecule)
    if options.samples:
        reference.save(options.samples)
    table, arrays = summarise(reference, molecule, options)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(table, indent=1) + "\n"
    write_atomically(options.out.with_suffix(".json"), lambda file: file.write(text.encode()))
    write_atomically(
        options.out.with_suffix(".npz"), lambda file: np.savez_compressed(file, **arrays)
    )
    print(text)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--forcefield", default="amber96-obc", help="amber96-obc or ff96-obc1")
    parser.add_argument("--temperature", type=float, default=330.0, help="K")
    parser.add_argument("--steps", type=int, default=40_000)
    parser.add_argument("--equilibration", type=int, default=8000, help="steps left out")
    parser.add_argument("--time-step", type=float, default=0.0025, help="ps")
    parser.add_argument("--ladders", type=int, default=256)
    parser.add_argument("--rungs", type=int, default=4)
    parser.add_argument("--hottest", type=float, default=2.7, help="times the temperature")
    parser.add_argument("--depth", type=float, default=15.0, help="of the bias, kJ/mol; 0 for none")
    parser.add_argument("--hydrogen-mass", type=float, default=3.024, help="amu")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--structures", type=int, default=2000)
    parser.add_argument("--out", type=Path, required=True, help="without suffix")
    parser.add_argument("--checkpoint", type=Path)
    parser.add_argument("--samples", type=Path, help="write every record to this .npz file too")
    return parser.parse_args()


def simulate(options: argparse.Namespace, molecule: pyrocg.Molecule) -> Reference:
    energy = pyrocg.CompiledEnergy(molecule, dtype=torch.float32)
    record_every = round(0.2 / options.time_step)
    return replica_exchange(
        pyrocg.BoltzmannTarget(energy, options.temperature),
        minima(molecule, options.temperature),
        options.steps,
        masses=repartitioned_masses(molecule, options.hydrogen_mass),
        time_step=options.time_step,
        ladder=temperature_ladder(options.rungs, options.hottest),
        n_ladders=options.ladders,
        exchange_every=8,
        record_every=record_every,
        equilibration=options.equilibration,
        bias=phi_bias(options.depth) if options.depth else None,
        seed=options.seed,
        checkpoint=options.checkpoint,
        checkpoint_seconds=120.0,
    )


def minima(molecule: pyrocg.Molecule, temperature: float) -> torch.Tensor:
    """The minima of the energy, among them left-handed ones."""
    target = pyrocg.BoltzmannTarget(pyrocg.CompiledEnergy(molecule), temperature)
    coordinates = pyrocg.InternalCoordinates(molecule)
    basins = pyrocg.find_basins(target, coordinates, cover=None)
    return coordinates(basins.u)[0].float()


def phi_bias(depth: float) -> TorsionBias:
    return TorsionBias((4, 6, 8, 14), centre=math.radians(60.0), depth=depth)


def trans(molecule: pyrocg.Molecule) -> observables.Observable:
    """Whether both peptide bonds are trans."""
    bonds = [geometry.omega(molecule, k) for k in range(2)]
    return observables.population(
        "trans", lambda x: np.all([np.cos(bond(x)) < 0 for bond in bonds], axis=0)
    )


def mirrored(molecule: pyrocg.Molecule) -> observables.Observable:
    """Whether the alpha carbon (8, with N 6, C 14, CB 10) has the other handedness."""

    def volume(x: Any) -> Any:
        a, b, c = (x[:, k] - x[:, 8] for k in (6, 14, 10))
        return (np.cross(a, b) * c).sum(-1)

    sign = float(np.sign(volume(molecule.positions[None])[0]))
    return observables.population("mirrored", lambda x: sign * volume(x) < 0)


def summarise(
    reference: Reference, molecule: pyrocg.Molecule, options: argparse.Namespace
) -> tuple[dict[str, Any], dict[str, Any]]:
    phi, psi = geometry.phi(molecule), geometry.psi(molecule)
    is_trans = trans(molecule)
    basins = geometry.basin_populations(molecule)
    found = [reference.estimate(o) for o in (is_trans, mirrored(molecule), *basins)]
    size = [geometry.radius_of_gyration(molecule), geometry.end_to_end(molecule), phi, psi]
    found += [reference.estimate(o) for o in size]
    found.append(reference.mean_energy)
    only_trans = restricted(reference, is_trans)
    found += [renamed(only_trans.estimate(o), "trans only") for o in (*basins, size[0])]
    angles = np.stack([reference.evaluate(phi).ravel(), reference.evaluate(psi).ravel()], 1)
    weights = np.exp(reference.log_weights).ravel()
    edges = np.linspace(-math.pi, math.pi, BINS + 1)
    density = np.histogram2d(*angles.T, bins=(edges, edges), weights=weights / weights.sum())[0]
    counts = np.histogram2d(*angles.T, bins=(edges, edges))[0]
    table = {
        "command": command(options),
        "system": f"alanine dipeptide, {options.forcefield}, {options.temperature:g} K",
        "averages": {average.name: plain(average) for average in found},
        "acceptance": reference.acceptance.round(4).tolist(),
        "round_trips": int(reference.round_trips.sum()),
        "records": int(reference.energies.size),
        "weights_ess": float(weights.sum() ** 2 / (weights**2).sum()),
        "energy_calls": reference.energy_calls,
        "seconds": round(reference.seconds, 1),
        "warnings": list(reference.warnings),
        "settings": reference.settings,
    }
    arrays = {
        "phi_psi_probability": density,
        "phi_psi_records": counts.astype(np.int32),
        "edges": edges,
        "positions": reference.draw(options.structures).astype(np.float32),
        **{average.name.replace(" ", "_") + "_per_ladder": average.per_chain for average in found},
    }
    return table, arrays


def command(options: argparse.Namespace) -> str:
    """What makes the same numbers again, wherever the files lie."""
    given = {k: v for k, v in vars(options).items() if k not in ("checkpoint", "samples", "out")}
    flags = " ".join(f"--{k.replace('_', '-')} {v}" for k, v in given.items())
    return f"python benchmarks/reference.py {flags} --out {options.out.name}"


def restricted(reference: Reference, inside: observables.Observable) -> Reference:
    """The same with weight 0 outside."""
    with np.errstate(divide="ignore"):
        log_weights = reference.log_weights + np.log(reference.evaluate(inside))
    fields = {k: v for k, v in vars(reference).items() if k != "mean_energy"}
    return Reference(**{**fields, "log_weights": log_weights})


def renamed(average: Average, suffix: str) -> Average:
    return Average(**{**vars(average), "name": f"{average.name}, {suffix}"})


def plain(average: Average) -> dict[str, Any]:
    numbers = {k: v for k, v in vars(average).items() if k not in ("per_chain", "name")}
    numbers = {k: None if v != v else v for k, v in numbers.items()}  # JSON knows no NaN
    return {**numbers, "interval": list(average.interval), "warnings": list(average.warnings)}


if __name__ == "__main__":
    main()
