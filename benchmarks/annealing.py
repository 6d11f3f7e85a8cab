"""Does annealing from the generator to the target pay, against more samples of the generator?

Run: python benchmarks/annealing.py FOLDER [--samples 20000] [--min-ess 0.97 0.99 0.998]

FOLDER is that of a trained run of alanine dipeptide, by `pyrocg fit` or
benchmarks/alanine_dipeptide.py. One row each for importance sampling and for annealed importance
sampling across bridges of more and more levels.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

import pyrocg
from pyrocg.annealing import anneal
from pyrocg.arviz_compat import pareto_smooth
from pyrocg.bridges import find_bridge
from pyrocg.cgmodel import CoarseGrainedModel
from pyrocg.conditions import at_target, seeded
from pyrocg.geometry import basin_populations
from pyrocg.weights import ess, log_mean_exp, log_mean_exp_error

HEADER = (
    "| method | levels | energy calls a sample | ESS % | ESS % for each call | k-hat | log Z "
    "| left % | acceptance |\n|" + "---|" * 9
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--samples", type=int, default=20_000)
    parser.add_argument("--min-ess", type=float, nargs="*", default=[0.97, 0.99, 0.998])
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    model = pyrocg.load_run(options.folder).model
    print(HEADER)
    for draws in (0, 4):
        x, log_w = importance(model, options.samples, draws, options.seed)
        name = f"importance sampling, {draws} encoder draws"
        report(name, 0, 1, x, log_w, "")
    for least in options.min_ess:
        bridge = find_bridge(model, min_ess=least, seed=options.seed)
        found = anneal(model, options.samples, bridge, seed=options.seed, progress=False)
        rates = f"{min(found.acceptance, default=1):.2f}, {min(found.latent_acceptance):.2f}"
        name = f"annealed, steps of conditional ESS {least}"
        x, log_w = found.samples.x, found.log_weights
        report(name, len(bridge.levels), bridge.calls_per_sample, x, log_w, rates)
        print(f"(finding this bridge: {bridge.energy_calls} calls)", flush=True)


def importance(
    model: CoarseGrainedModel, n: int, encoder_draws: int, seed: int, batch: int = 5000
) -> tuple[torch.Tensor, torch.Tensor]:
    """Configurations of the generator with their log weights."""
    with seeded(seed, model.parameters()), at_target(model):
        sizes = [min(batch, n - start) for start in range(0, n, batch)]
        parts = [model.sample(size, encoder_draws=encoder_draws) for size in sizes]
    log_w = torch.cat([p.log_weights for p in parts]).double()
    return torch.cat([p.x for p in parts]), torch.where(log_w.isfinite(), log_w, -torch.inf)


def report(
    name: str, levels: int, calls: int, x: torch.Tensor, log_w: torch.Tensor, rates: str
) -> None:
    molecule = pyrocg.alanine_dipeptide()
    left = next(o for o in basin_populations(molecule) if o.name == "population_left")
    inside = torch.from_numpy(left(x.numpy())).double()
    w = torch.softmax(log_w, 0)
    mean = float((w * inside).sum())
    error = float((w * (inside - mean)).square().sum().sqrt())
    fraction = 100 * float(ess(log_w))
    cells = [
        name,
        str(levels),
        str(calls),
        f"{fraction:.1f}",
        f"{fraction / calls:.1f}",
        f"{pareto_smooth(log_w.numpy())[1]:.2f}",
        f"{float(log_mean_exp(log_w)):.4f} ± {float(log_mean_exp_error(log_w)):.4f}",
        f"{100 * mean:.3f} ± {100 * error:.3f}",
        rates,
    ]
    print("| " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
