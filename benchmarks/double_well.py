"""Does the default recipe find both wells of the paper's double well, seed after seed?

Run: python benchmarks/double_well.py [--seeds 5]

Exact values are by quadrature. Passes (exit code 0) if for every seed |log Z error| < 0.02 and
P(x1 > 0.167) is within 10 % (c = 1) or within 0.02 of 0.5 (c = 0).
"""

from __future__ import annotations

import argparse
import sys
import time

import torch

import pyrocg


def run(tilt: float, seed: int) -> bool:
    """Train and predict once, print a row, return whether it is within the bounds."""
    started = time.perf_counter()
    well = pyrocg.DoubleWell(c=tilt)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = pyrocg.CoarseGrainedModel.from_basins(
            pyrocg.BoltzmannTarget(well, beta=1.0),
            pyrocg.IdentityCoordinates(2),
            latent_dim=1,
            n_couplings=4,
            hidden=(64, 64),
        )
    pyrocg.fit(model, 600, 256, learning_rate=3e-3, seed=seed, progress=False)
    observables = pyrocg.double_well_observables()
    prediction = pyrocg.predict(model, observables, seed=seed, progress=False)
    right, exact = prediction.estimate("population_right"), well.probability_above()
    plain = prediction.estimate("population_right", corrected=False)
    seconds, error = time.perf_counter() - started, prediction.log_z - well.log_z()
    print(
        f"| {tilt:g} | {seed} | {prediction.log_z:.4f} | {error:+.4f} | {prediction.elbo:.4f} "
        f"| {100 * prediction.ess:.1f} | {prediction.pareto_k:.2f} | {right.mean:.5f} "
        f"[{right.interval[0]:.5f}, {right.interval[1]:.5f}] | {plain.mean:.5f} | {exact:.5f} "
        f"| {well.calls} | {seconds:.0f} |",
        flush=True,
    )
    bound = 0.1 * exact if tilt else 0.02
    return abs(error) < 0.02 and abs(right.mean - exact) < bound


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5)
    seeds = parser.parse_args().seeds
    print(
        "| c | seed | log Z | error | ELBO | ESS % of 1e5 | k-hat | P(x1 > 0.167) [95 %] | plain "
        "| exact | energy calls | s |\n|" + "---|" * 12
    )
    passed = [run(tilt, seed) for tilt in (1.0, 0.0) for seed in range(seeds)]
    print(f"\n{sum(passed)} of {len(passed)} within the bounds")
    sys.exit(not all(passed))


if __name__ == "__main__":
    main()
