"""How far does the recipe reach as the molecule grows? ACE-(ALA)n-NME, 300 K.

Run: python benchmarks/peptides.py reference AAA     (replica exchange, the truth to compare with)
     python benchmarks/peptides.py train AAA --seed 0
     python benchmarks/peptides.py table AAA --seed 0
     python benchmarks/peptides.py figure

AAA is the alanine tetrapeptide and AAAAA the hexapeptide of the publications; the force field is
amber99sbildn with OBC. Everything is kept under --out: what is there is not done again, and what
was stopped goes on. `train` follows the bound against energy calls; `table` compares the trained
model with the reference, which nothing of the training has seen; `figure` draws every table there.
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
from pyrocg import geometry
from pyrocg.arviz_compat import pareto_smooth
from pyrocg.basins import Basins, find_basins
from pyrocg.cgmodel import CoarseGrainedModel
from pyrocg.checkpoint import load_state, save_state, write_atomically
from pyrocg.comparison import Comparison, compare
from pyrocg.langevin import repartitioned_masses, temperature_ladder
from pyrocg.reference import Reference, replica_exchange

FORCEFIELD = ("amber99sbildn.xml", "amber99_obc.xml")
TEMPERATURE = 300.0  # K
RUNGS = {"A": 4, "AAA": 6, "AAAAA": 8}
HOTTEST = 2.2  # times the temperature; hotter, peptide bonds would turn to cis
EQUILIBRATION = 4000  # steps, 10 ps
PUBLISHED = {120: 68.6, 180: 29.6}  # ESS in % of CMT, arXiv:2510.18460


def main() -> None:
    options = parse()
    torch.set_num_threads(1)
    options.out.mkdir(parents=True, exist_ok=True)
    actions = {"reference": reference, "train": train, "table": table, "figure": figure}
    actions[options.what](options)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["reference", "train", "table", "figure"])
    parser.add_argument("sequence", nargs="?", choices=list(RUNGS), default="AAA")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=6000, help="of training")
    parser.add_argument("--num-samples", type=int, default=256, help="in each step")
    parser.add_argument("--samples", type=int, default=100_000, help="to compare")
    parser.add_argument("--dynamics", type=int, default=50_000, help="steps of the reference")
    parser.add_argument("--ladders", type=int, default=48, help="of the reference")
    parser.add_argument("--out", type=Path, default=Path("runs/peptides"))
    return parser.parse_args()


class System:
    """One peptide: molecule, target (single precision, capped in training), coordinates, basins."""

    def __init__(self, sequence: str, out: Path) -> None:
        self.molecule = pyrocg.peptide(sequence, forcefield=FORCEFIELD)
        self.coordinates = pyrocg.InternalCoordinates(self.molecule)
        self.target = self._target(torch.float32)
        kt = 1.0 / self.target.beta
        capped = pyrocg.CappedEnergy(self.target.energy, 1000.0 * kt, 100.0 * kt)
        self.target = pyrocg.BoltzmannTarget(capped, TEMPERATURE)
        self.file = out / f"{sequence}-basins.pt"

    def _target(self, dtype: torch.dtype) -> pyrocg.BoltzmannTarget:
        energy = pyrocg.CompiledEnergy(self.molecule, dtype=dtype)
        return pyrocg.BoltzmannTarget(energy, TEMPERATURE)

    def basins(self) -> Basins:
        if not self.file.exists():
            found = find_basins(self._target(torch.float64), self.coordinates, progress=True)
            save_state(self.file, vars(found))
        return Basins(**load_state(self.file))

    def model(self, seed: int) -> CoarseGrainedModel:
        torch.manual_seed(seed)
        return CoarseGrainedModel.from_basins(self.target, self.coordinates, self.basins())


# The truth


def reference(options: argparse.Namespace) -> None:
    found = simulated(options)
    print(f"acceptance {found.acceptance.round(2)}, {found.round_trips.sum()} round trips")
    print(f"{found.energy_calls:.2e} energy calls, {found.seconds:.0f} s")
    print("\n".join(found.warnings))


def simulated(options: argparse.Namespace) -> Reference:
    file = options.out / f"{options.sequence}-reference.npz"
    if not file.exists():
        system = System(options.sequence, options.out)
        basins = system.basins()
        generator = torch.Generator().manual_seed(0)
        weights = torch.softmax(basins.log_z, 0)
        start = weights.multinomial(options.ladders, replacement=True, generator=generator)
        run = replica_exchange(
            system.target,
            system.coordinates(basins.u[start])[0].float(),
            options.dynamics,
            masses=repartitioned_masses(system.molecule),
            time_step=0.0025,
            ladder=temperature_ladder(RUNGS[options.sequence], HOTTEST),
            n_ladders=options.ladders,
            exchange_every=8,
            record_every=80,
            equilibration=EQUILIBRATION,
            checkpoint=file.with_suffix(".ckpt"),
            checkpoint_seconds=120.0,
        )
        run.save(file)
    return Reference.load(file)


# The model


def train(options: argparse.Namespace) -> None:
    system = System(options.sequence, options.out)
    model = system.model(options.seed)
    name = f"{options.sequence}-{options.seed}"
    result = pyrocg.fit(
        model,
        options.steps,
        options.num_samples,
        evaluate_every=max(1, options.steps // 16),
        seed=options.seed,
        checkpoint=options.out / f"{name}.ckpt",
    )
    print(f"{result.energy_calls:.2e} energy calls, {result.seconds:.0f} s")


def trained(options: argparse.Namespace) -> tuple[System, CoarseGrainedModel, dict[str, Any]]:
    """The system, its trained model, and the state of the training."""
    system = System(options.sequence, options.out)
    model = system.model(options.seed)
    state = load_state(options.out / f"{options.sequence}-{options.seed}.ckpt")
    model.load_state_dict(state["model"])
    return system, model, state


# Both


def table(options: argparse.Namespace) -> None:
    system, model, state = trained(options)
    residues = range(len(options.sequence))
    chosen = [o for r in residues for o in geometry.basin_populations(system.molecule, r)]
    found = compare(
        model,
        simulated(options),
        [*chosen, geometry.radius_of_gyration(system.molecule)],
        num_samples=options.samples,
        seed=1000 + options.seed,
    )
    row = summary(found, model, options, state["counters"])
    row |= of_more_draws(model, options.samples)
    file = options.out / f"{options.sequence}-{options.seed}.json"
    write_atomically(file, lambda f: f.write((json.dumps(row, indent=1) + "\n").encode()))
    show(row, found)


def summary(
    found: Comparison,
    model: CoarseGrainedModel,
    options: argparse.Namespace,
    counters: dict[str, Any],
) -> dict[str, Any]:
    kept = ["ess", "elbo", "log_z", "log_z_error", "eubo", "eubo_error", "reference_log_z"]
    kept += ["forward_ess", "unsupported", "undersampled", "n_samples"]
    history = counters["history"]
    return {
        **{name: getattr(found, name) for name in kept},
        "sequence": options.sequence,
        "dimension": model.coordinates.n_coordinates,
        "components": len(model.prior.shares),
        "calls": counters["energy_calls"],
        "seconds": counters["seconds"],
        "steps": counters["step"],
        "curve": {name: history[name] for name in ("energy_calls", "elbo", "ess")},
    }


def of_more_draws(model: CoarseGrainedModel, n: int, batch: int = 5000) -> dict[str, float]:
    """ESS and k-hat of as many other samples, whose weights are averaged over 4 encoder draws."""
    parts = [model.sample(batch, encoder_draws=4).log_weights for _ in range(math.ceil(n / batch))]
    log_w = torch.cat(parts).double().nan_to_num(-math.inf)
    w = torch.softmax(log_w, 0)
    return {
        "ess_of_draws": float(1.0 / (len(w) * w.square().sum())),
        "pareto_k": pareto_smooth(log_w.numpy())[1],
    }


def show(row: dict[str, Any], found: Comparison) -> None:
    for name in ("dimension", "components", "steps", "calls", "seconds", "n_samples"):
        print(f"{name}: {row[name]:.4g}")
    print(f"ESS {100 * row['ess']:.2f} %, forward {100 * row['forward_ess']:.2f} %")
    print(f"ESS of others with 4 encoder draws {100 * row['ess_of_draws']:.2f} %")
    print(f"their k-hat {row['pareto_k']:.2f}")
    print(f"ELBO {row['elbo']:.3f}, log Z {row['log_z']:.3f} ± {row['log_z_error']:.3f}")
    print(f"EUBO {row['eubo']:.3f} ± {row['eubo_error']:.3f}")
    print(f"undersampled {100 * row['undersampled']:.3f} %, unsupported {row['unsupported']:.2g}")
    print("\n| | reference | model | model without weights | z |\n|---|---|---|---|---|")
    for part in found.averages:
        values = [(part.reference.mean, part.reference.standard_error), part.corrected, part.plain]
        cells = " | ".join(f"{mean:.4f} ± {error:.4f}" for mean, error in values)
        print(f"| {part.name} | {cells} | {part.z_score:+.1f} |")
    print(*found.warnings, sep="\n")


def figure(options: argparse.Namespace) -> None:
    """The bound against energy calls, and the ESS against the number of coordinates."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    rows = [json.loads(file.read_text()) for file in sorted(options.out.glob("*.json"))]
    axes: Any
    picture, axes = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    for row in rows:
        calls, elbo = (np.array(row["curve"][name]) for name in ("energy_calls", "elbo"))
        label = f"{row['sequence']}, {row['components']} components, {row['steps']} steps"
        axes[0].loglog(calls, row["log_z"] - elbo, marker=".", label=label)
    axes[0].set(xlabel="energy calls of training", ylabel="log Z - ELBO (nats)", ylim=(0.1, 30))
    axes[0].legend(loc="lower left", fontsize="small")
    drawn = [row for row in rows if "ess_of_draws" in row]
    own = [(row["dimension"], 100 * row["ess_of_draws"]) for row in drawn]
    axes[1].semilogy(*zip(*own, strict=True), "o", label="pyrocg")
    axes[1].semilogy(*zip(*PUBLISHED.items(), strict=True), "x", label="CMT, published")
    axes[1].set(xlabel="coordinates", ylabel="effective sample size, 4 encoder draws (%)")
    axes[1].legend()
    picture.savefig(Path(__file__).parent / "figures" / "peptides.png", dpi=120)


if __name__ == "__main__":
    main()
