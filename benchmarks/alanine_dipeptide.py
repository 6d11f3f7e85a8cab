"""How close does the learned distribution come to the truth, after how many energy calls?

Run: python benchmarks/alanine_dipeptide.py [--forcefield ff96-obc1] [--recipe long] [--seeds 0 1 2]
     python benchmarks/alanine_dipeptide.py --surface 10000000
     python benchmarks/alanine_dipeptide.py --dynamics [TIMES]

The first trains and predicts by the command line, one run folder for each seed under --out; what is
there already is not done again, and what was stopped goes on. References: benchmarks/references,
made by benchmarks/reference.py. --surface draws so many samples of each trained seed and compares
their Ramachandran densities with the reference and with each other. --dynamics spends the energy
calls of the first seed, or so many TIMES as many, on replica exchange and on plain Langevin
dynamics.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

import pyrocg
from pyrocg import geometry
from pyrocg.cgmodel import CoarseGrainedModel
from pyrocg.langevin import repartitioned_masses, temperature_ladder
from pyrocg.reference import Reference, replica_exchange

TEMPERATURE = {"amber96-obc": 330, "ff96-obc1": 300}  # K
RECIPES = {
    "default": "",
    "long": "--steps 20000 --num-samples 400 --n-couplings 8 --hidden 192 192",
}
BASINS = ("left", "alpha", "beta")
BINS = 100
REFERENCES = Path(__file__).parent / "references"


def main() -> None:
    options = parse()
    torch.set_num_threads(1)
    if options.dynamics is not None:
        dynamics(options)
    elif options.surface:
        surfaces(options)
    else:
        accuracy(options)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--forcefield", choices=list(TEMPERATURE), default="amber96-obc")
    parser.add_argument("--recipe", choices=list(RECIPES), default="default")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--samples", type=int, default=100_000, help="to predict from")
    parser.add_argument("--surface", type=int, metavar="N", help="samples of each seed")
    parser.add_argument("--dynamics", type=float, nargs="?", const=1.0, metavar="TIMES")
    parser.add_argument("--out", type=Path, default=Path("runs"), help="folder of the run folders")
    return parser.parse_args()


# Accuracy, seed by seed


def accuracy(options: argparse.Namespace) -> None:
    truth = reference(options.forcefield)
    print(
        "| seed | ESS % | k-hat | log Z [95 %] | "
        + " | ".join(f"{name} % [95 %]" for name in BASINS)
        + " | energy calls of training | training s |\n|"
        + "---|" * (6 + len(BASINS))
    )
    log_z = []
    for seed in options.seeds:
        found = predicted(trained(options, seed), options.samples)
        log_z.append(found["log_z"])
        calls = found["energy_calls_split"]
        low, high = found["log_z_interval"]
        cells = [
            str(seed),
            f"{100 * found['ess']:.1f}",
            f"{found['pareto_k'] or math.inf:.2f}",
            f"{found['log_z']:.4f} [{low:.4f}, {high:.4f}]",
            *(population(found["observables"][f"population_{name}"]) for name in BASINS),
            f"{sum(n for key, n in calls.items() if key != 'prediction'):.3g}",
            f"{found['seconds']['training']:.0f}",
        ]
        print("| " + " | ".join(cells) + " |", flush=True)
    known = [population(truth[f"population_{name}, trans only"]) for name in BASINS]
    print("| reference | | | | " + " | ".join(known) + " | | |")
    print(f"\nlog Z of the seeds within {max(log_z) - min(log_z):.4f}")


def population(value: dict[str, Any]) -> str:
    low, high = (100 * end for end in value["interval"])
    return f"{100 * value['mean']:.3f} [{low:.3f}, {high:.3f}]"


def reference(forcefield: str) -> dict[str, Any]:
    """Averages of the reference, by name."""
    return json.loads(reference_file(forcefield).with_suffix(".json").read_text())["averages"]


def reference_file(forcefield: str) -> Path:
    name = f"ala2_{forcefield.replace('-', '_')}_{TEMPERATURE[forcefield]}K"
    return REFERENCES / name


def trained(options: argparse.Namespace, seed: int) -> Path:
    """The folder of a run that is trained, now or before."""
    folder = options.out / f"{options.forcefield}-{options.recipe}-{seed}"
    if (folder / "config.toml").exists():
        command(["resume", str(folder)])
        return folder
    arguments = ["--forcefield", options.forcefield, "--seed", str(seed), "--out", str(folder)]
    arguments += ["--temperature", str(TEMPERATURE[options.forcefield])]
    command(["fit", "alanine-dipeptide", *arguments, *RECIPES[options.recipe].split()])
    return folder


def predicted(folder: Path, samples: int) -> dict[str, Any]:
    """The prediction of a trained run, as `pyrocg predict --json` gives it."""
    out = command(["predict", str(folder), "--json", "--predict-samples", str(samples)])
    found: dict[str, Any] = json.loads(out)
    return found


def command(arguments: list[str]) -> str:
    """Run the command line in a process of its own, return what it prints."""
    environment = {"OMP_NUM_THREADS": "1", **os.environ}
    done = subprocess.run(
        [sys.executable, "-m", "pyrocg", *arguments, "--quiet"],
        stdout=subprocess.PIPE,
        env=environment,
        text=True,
        check=True,
    )
    return done.stdout


# Ramachandran densities


def surfaces(options: argparse.Namespace) -> None:
    known = np.load(reference_file(options.forcefield).with_suffix(".npz"))
    known = known["phi_psi_probability"]
    found, effective = {}, {}
    for seed in options.seeds:
        model = pyrocg.load_run(trained(options, seed)).model
        found[seed], effective[seed] = surface(model, options.surface, seed)
        distance = pyrocg.total_variation(found[seed], known)
        print(
            f"seed {seed}: effective samples {effective[seed]:.3g} of {options.surface}, total "
            f"variation from the reference {distance:.4f}",
            flush=True,
        )
    for (a, p), (b, q) in itertools.combinations(found.items(), 2):
        noise = finite_sample_distance(
            0.5 * (p / p.sum() + q / q.sum()), effective[a], effective[b]
        )
        print(
            f"seeds {a} and {b}: total variation {pyrocg.total_variation(p, q):.4f}, "
            f"{noise:.4f} by finite samples alone"
        )


def finite_sample_distance(p: np.ndarray, first: float, second: float) -> float:
    """Mean total variation of two histograms of independent samples of the same density."""
    return float(np.sqrt(p * (1 / first + 1 / second) / (2 * math.pi)).sum())


def surface(
    model: CoarseGrainedModel, n: int, seed: int, batch: int = 5000
) -> tuple[np.ndarray, float]:
    """The weighted histogram of (phi, psi), and the effective number of samples."""
    molecule = pyrocg.alanine_dipeptide()
    angles = [geometry.phi(molecule), geometry.psi(molecule)]
    edges = np.linspace(-math.pi, math.pi, BINS + 1)
    counts, total, squares, shift = np.zeros((BINS, BINS)), 0.0, 0.0, None
    torch.manual_seed(1000 + seed)
    for _ in range(math.ceil(n / batch)):
        samples = model.sample(batch, encoder_draws=4)
        log_w = samples.log_weights.double().nan_to_num(-math.inf)
        shift = log_w.max() if shift is None else shift
        w = (log_w - shift).exp().numpy()
        x = samples.x.numpy()
        counts += np.histogram2d(*(a(x) for a in angles), bins=(edges, edges), weights=w)[0]
        total, squares = total + w.sum(), squares + (w**2).sum()
    return counts, total**2 / squares


# What the same energy calls buy by dynamics


def dynamics(options: argparse.Namespace) -> None:
    summary = predicted(trained(options, options.seeds[0]), options.samples)
    calls = round(options.dynamics * summary["energy_calls"])
    molecule = pyrocg.alanine_dipeptide(options.forcefield)
    print(
        f"{summary['energy_calls']:.3g} energy calls of the learned model, {options.samples} of "
        f"them for samples; {calls:.3g} of each dynamics\n\n| method | seconds | "
        + " | ".join(f"{name} % [95 %]" for name in BASINS)
        + " |\n|"
        + "---|" * (2 + len(BASINS))
    )
    learned = [population(summary["observables"][f"population_{name}"]) for name in BASINS]
    seconds = summary["seconds"]["training"]
    print(f"| learned model | {seconds:.0f} | " + " | ".join(learned) + " |", flush=True)
    for name, rungs in (("replica exchange", 4), ("Langevin dynamics", 1)):
        run = simulate(options.forcefield, molecule, calls, rungs)
        found = [run.estimate(o) for o in geometry.basin_populations(molecule)]
        by_name = {f.name: vars(f) for f in found}
        cells = [population(by_name[f"population_{basin}"]) for basin in BASINS]
        print(f"| {name} | {run.seconds:.0f} | " + " | ".join(cells) + " |", flush=True)


def simulate(
    forcefield: str, molecule: Any, calls: int, rungs: int, ladders: int = 32
) -> Reference:
    """Dynamics of so many energy calls from the molecule's given structure."""
    energy = pyrocg.CompiledEnergy(molecule, dtype=torch.float32)
    return replica_exchange(
        pyrocg.BoltzmannTarget(energy, TEMPERATURE[forcefield]),
        torch.tensor(molecule.positions, dtype=torch.float32)[None],
        calls // (ladders * rungs),
        masses=repartitioned_masses(molecule),
        time_step=0.0025,
        ladder=temperature_ladder(rungs, 2.7) if rungs > 1 else (1.0,),
        n_ladders=ladders,
        exchange_every=8,
        record_every=40,
        progress=False,
    )


if __name__ == "__main__":
    main()
