"""Do credible intervals hold the exact value as often as they promise?

Run: python benchmarks/interval_coverage.py [--seeds 60] [--parts coverage widths]
     python benchmarks/interval_coverage.py --molecule
     python benchmarks/interval_coverage.py --rows rows.jsonl --figure interval_coverage.png

Trains short runs on targets whose averages are known, and counts how often intervals of 95, 80 and
50 % hold them: of the importance-corrected averages, of the model's own, and, with --laplace-seeds,
of both with a Laplace posterior over the decoder's weights. The runs are too short on purpose, so
that the model's own averages are biased and the warning about that has something to say. The part
"widths" shows what makes intervals narrow: samples, training and the Gibbs scale N. With
--rows the results are kept in a file; seeds that it has are not run again.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from interval_tables import (
    LEVELS,
    Row,
    calibration_figure,
    coverage_table,
    spread_table,
    warning_table,
)
from interval_targets import Case, cases, molecule

from pyrocg.cgmodel import CoarseGrainedModel
from pyrocg.estimates import Estimate
from pyrocg.prediction import Prediction
from pyrocg.weight_priors import GaussianWeightPrior

_RESOLVED = 400_000  # samples of 20 weight draws

# Coverage


def measured(case: Case, seed: int, laplace: bool) -> list[Row]:
    model = case.trained(seed)
    if laplace:
        prediction = case.predict(model, seed, posterior=case.posterior(model))
        return rows(case, seed, prediction, ", Laplace")
    return rows(case, seed, case.predict(model, seed), "", own_bias(case, model, seed))


def own_bias(case: Case, model: CoarseGrainedModel, seed: int) -> list[float]:
    """How far the model's own averages are off the truth, in standard errors of other samples.

    From the mean of (1 - w) (f - truth), which has far less noise than that of f where weights are
    nearly equal. The numbers of samples of the components are fixed: only the spread within them is
    noise.
    """
    n = case.bias_samples
    with torch.random.fork_rng():
        torch.manual_seed(seed + 10**6)
        samples = model.sample(n, encoder_draws=1)
    log_w = samples.log_weights.double()
    x, excess = samples.x.numpy(), 1 - (log_w - log_w.logsumexp(0) + math.log(n)).exp().numpy()
    component = samples.latents["component"].numpy()
    found = []
    for observable, exact, error in case.truth:
        moved = excess * (observable(x) - exact)
        parts = [moved[component == k] for k in np.unique(component)]
        noise = sum(len(part) * part.var() for part in parts) / n**2
        found.append(float(moved.mean()) / math.sqrt(noise + error**2))
    return found


def rows(
    case: Case, seed: int, prediction: Prediction, suffix: str, bias: Sequence[float] = ()
) -> list[Row]:
    warned = {c.observable for c in prediction.warnings if c.code == "model_bias"}
    found = []
    for corrected in (True, False):
        for i, (observable, exact, error) in enumerate(case.truth):
            estimate = prediction.estimate(observable.name, corrected)
            low, high = estimate.interval
            row = Row(
                case.name,
                seed,
                ("corrected" if corrected else "plain") + suffix,
                observable.name,
                held(estimate, exact, error, seed),
                estimate.mean,
                estimate.standard_deviation,
                high - low,
                (estimate.mean - exact) / math.hypot(estimate.standard_deviation, error),
                bias[i] if bias else math.nan,
                prediction.pareto_k,
                prediction.ess,
                observable.name in warned,
            )
            found.append(row)
    return found


def held(estimate: Estimate, exact: float, error: float, seed: int) -> tuple[bool, ...]:
    """Whether each interval holds the truth; its own error widens the interval."""
    noise = error * np.random.default_rng(seed).standard_normal(len(estimate.draws))
    ends = [np.quantile(estimate.draws + noise, [(1 - q) / 2, (1 + q) / 2]) for q in LEVELS]
    return tuple(bool(low <= exact <= high) for low, high in ends)


def coverage(options: argparse.Namespace) -> list[Row]:
    """Every row, from the file and new ones."""
    kept: list[Row] = []
    if options.rows and options.rows.exists():
        kept = [Row(**json.loads(line)) for line in options.rows.read_text().splitlines()]
    known = {(row.case, row.seed, "Laplace" in row.way) for row in kept}
    chosen = cases(options.cases)
    wanted = [
        (case, seed, laplace)
        for laplace, seeds in ((False, options.seeds), (True, options.laplace_seeds))
        for case in chosen
        for seed in range(seeds)
    ]
    if options.molecule:
        case = molecule()
        wanted += [(case, seed, False) for seed in range(10)]
    for case, seed, laplace in wanted:
        if (case.name, seed, laplace) in known:
            continue
        found = measured(case, seed, laplace)
        kept += found
        if options.rows:
            with options.rows.open("a") as file:
                file.writelines(json.dumps(asdict(row)) + "\n" for row in found)
    return kept


# Widths


def widths(options: argparse.Namespace) -> None:
    """Widths of 95 % intervals, averaged over seeds, against what should make them narrow."""
    print("\n| target | average | against | | | |\n|" + "---|" * 6)
    seeds = range(options.width_seeds)
    for case in cases(options.cases):
        models = [case.trained(seed) for seed in seeds]
        samples = (2500, 10_000, 40_000)
        found = [[case.predict(m, s, num_samples=n) for s, m in enumerate(models)] for n in samples]
        line(case, "corrected", "samples", samples, found, True)
        line(case, "plain", "samples", samples, found, False)
        longer = [case.steps * factor for factor in (1, 4, 16)]
        found = [[case.predict(case.trained(s, n), s) for s in seeds] for n in longer]
        line(case, "corrected", "training steps", longer, found, True)
        against_scale(case, models)
    if options.molecule:
        case, steps = molecule(), (25, 100, 400)
        found = [[case.predict(case.trained(s, n), s) for s in seeds] for n in steps]
        line(case, "corrected", "training steps", steps, found, True)


def against_scale(case: Case, models: Sequence[CoarseGrainedModel]) -> None:
    """Larger N, from one fit of each seed, with one prior: the default one follows N.

    So many samples of each draw that its noise does not hide how far apart the draws are.
    """
    scales = (1e3, 1e4, 1e5)
    found: list[list[Prediction]] = [[] for _ in scales]
    for seed, model in enumerate(models):
        prior = GaussianWeightPrior(case.posterior(model, gibbs_scale=scales[0]).prior_scale)
        for row, n in zip(found, scales, strict=True):
            posterior = case.posterior(model, gibbs_scale=n, weight_prior=prior)
            row.append(case.predict(model, seed, posterior=posterior, num_samples=_RESOLVED))
    line(case, "plain, Laplace", "Gibbs scale N", scales, found, False)


def line(
    case: Case,
    way: str,
    against: str,
    values: Sequence[float],
    found: Sequence[Sequence[Prediction]],
    corrected: bool,
) -> None:
    """For each observable a row of mean widths."""
    for observable, _, _ in case.truth:
        cells = []
        for value, predictions in zip(values, found, strict=True):
            ends = [p.estimate(observable.name, corrected).interval for p in predictions]
            cells.append(f"{value:g}: {np.mean([high - low for low, high in ends]):.3g}")
        what = f"{way}, {observable.name}"
        print(f"| {case.name} | {what} | {against} | " + " | ".join(cells) + " |", flush=True)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parts, names = ["coverage", "widths"], ["double_well", "mixture", "harmonic"]
    parser.add_argument("--seeds", type=int, default=60)
    parser.add_argument("--parts", nargs="+", choices=parts, default=parts)
    parser.add_argument("--cases", nargs="*", choices=names, default=names)
    parser.add_argument("--molecule", action="store_true", help="alanine dipeptide too, 10 seeds")
    parser.add_argument("--laplace-seeds", type=int, default=0, help="with a posterior too")
    parser.add_argument("--width-seeds", type=int, default=4, help="that widths are averaged over")
    parser.add_argument("--rows", type=Path, help="file to keep results in, and to go on from")
    parser.add_argument("--figure", type=Path, help="calibration plot")
    return parser.parse_args()


def main() -> None:
    options = parse()
    torch.set_num_threads(1)
    if "coverage" in options.parts:
        started = time.perf_counter()
        every = coverage(options)
        coverage_table(every)
        warning_table(every)
        spread_table(every)
        print(f"\n{time.perf_counter() - started:.0f} s")
        if options.figure:
            calibration_figure(every, options.figure)
    if "widths" in options.parts:
        widths(options)


if __name__ == "__main__":
    main()
