"""Do credible intervals hold the exact value as often as they promise?

Run: python benchmarks/interval_coverage.py [--seeds 60] [--parts coverage widths cost]
     python benchmarks/interval_coverage.py --parts coverage --molecule
     python benchmarks/interval_coverage.py --rows rows.jsonl --figure interval_coverage.png

Trains short runs on targets whose averages are known exactly, and counts how often intervals of
95, 80 and 50 % hold them: of the importance-corrected averages, of the model's own, and of both
with a Laplace posterior over the decoder's weights. The runs are too short on purpose, so that the
model's own averages are biased and the warning about that has something to say. With --rows the
results are kept in a file; seeds that it has are not run again.
"""

from __future__ import annotations

import argparse
import json
import math
import resource
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

import pyrocg
from pyrocg import observables
from pyrocg.basins import Basins, find_basins
from pyrocg.cautions import MAX_PARETO_K
from pyrocg.cgmodel import CoarseGrainedModel
from pyrocg.estimates import Estimate
from pyrocg.laplace import LaplacePosterior
from pyrocg.prediction import Prediction

LEVELS = (0.95, 0.8, 0.5)
WAYS = ("corrected", "plain", "corrected, Laplace", "plain, Laplace")
REFERENCE = Path(__file__).parent / "references" / "ala2_amber96_obc_330K.json"


@dataclass(frozen=True)
class Case:
    """A target with known averages, and a run that is too short for it.

    Attributes:
        name: in the tables.
        build: from a seed to an untrained model.
        truth: observable and its average, with the standard error of that; 0 where it is exact.
        steps: of the training.
        num_samples: of each step.
        learning_rate: of the training.
        n: samples of a prediction.
    """

    name: str
    build: Callable[[int], CoarseGrainedModel]
    truth: Sequence[tuple[pyrocg.Observable, float, float]]
    steps: int
    num_samples: int = 64
    learning_rate: float = 1e-2
    n: int = 5_000

    def trained(self, seed: int, steps: int | None = None) -> CoarseGrainedModel:
        model = self.build(seed)
        pyrocg.fit(
            model,
            self.steps if steps is None else steps,
            self.num_samples,
            learning_rate=self.learning_rate,
            evaluate_every=1000,
            seed=seed,
            progress=False,
        )
        return model

    def posterior(self, model: CoarseGrainedModel, **scale: float) -> LaplacePosterior:
        given: Any = scale or {"n_samples": self.steps * self.num_samples}
        return LaplacePosterior.fit(model, num_draws=200, **given)

    def predict(self, model: CoarseGrainedModel, seed: int, **options: Any) -> Prediction:
        found = [observable for observable, _, _ in self.truth]
        n = options.pop("num_samples", self.n)
        return pyrocg.predict(model, found, n, seed=seed, progress=False, **options)


@dataclass(frozen=True)
class Row:
    """One interval.

    Attributes:
        case: name of the target.
        seed: of training and prediction.
        way: one of :data:`WAYS`.
        observable: its name.
        held: whether the interval of each of :data:`LEVELS` holds the truth.
        width: of the 95 % interval.
        error: of the estimate, in its own standard deviations.
        bias: of the model's own average, see :func:`own_bias`; NaN with a posterior.
        k_hat: of the prediction.
        ess: of the prediction, a fraction.
        warned: whether ``model_bias`` was given for this observable.
    """

    case: str
    seed: int
    way: str
    observable: str
    held: tuple[bool, ...]
    width: float
    error: float
    bias: float
    k_hat: float
    ess: float
    warned: bool

    @property
    def is_population(self) -> bool:
        return self.observable.startswith("population")

    @property
    def trusted(self) -> bool:
        return self.k_hat < MAX_PARETO_K


# The targets


def cases(names: Sequence[str]) -> list[Case]:
    makers = {"double_well": double_well, "mixture": mixture, "harmonic": harmonic}
    return [makers[name]() for name in names]


def toy(energy: Any, latent_dim: int = 1) -> Callable[[int], CoarseGrainedModel]:
    """The recommended model, small; its basins are found once for all seeds."""
    target = pyrocg.BoltzmannTarget(energy, beta=1.0)
    coordinates = pyrocg.IdentityCoordinates(energy.dim)
    found: list[Basins] = []

    def build(seed: int) -> CoarseGrainedModel:
        found[:] = found or [find_basins(target, coordinates, starts=32)]
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return CoarseGrainedModel.from_basins(
                target, coordinates, found[0], latent_dim=latent_dim, n_couplings=2, hidden=(8,)
            )

    return build


def double_well() -> Case:
    well = pyrocg.DoubleWell()
    x1, x2, right = pyrocg.double_well_observables()
    mean = well.mean().tolist()
    truth = [(x1, mean[0], 0.0), (x2, mean[1], 0.0), (right, well.probability_above(), 0.0)]
    return Case("double well", toy(well), truth, steps=30)


def mixture() -> Case:
    means = torch.tensor([[-2.0, 0.0], [1.5, 1.0], [0.0, -2.5]])
    variances = torch.tensor([[0.5, 0.3], [0.3, 0.6], [0.4, 0.4]])
    energy = pyrocg.GaussianMixture(means, variances, [0.6, 0.3, 0.1])
    above = torch.special.ndtr((means[:, 0] - 0.8) / variances[:, 0].sqrt()).double()
    mean = energy.mean().tolist()
    truth = [
        (observables.coordinate(0), mean[0], 0.0),
        (observables.coordinate(1), mean[1], 0.0),
        (observables.population_above(0.8), float(energy.weights @ above), 0.0),
    ]
    return Case("Gaussian mixture", toy(energy), truth, steps=30)


def harmonic() -> Case:
    """Ten correlated dimensions. Training starts at the exact answer, and noise moves it away."""
    generator = torch.Generator().manual_seed(1)
    loadings = torch.randn(2, 10, generator=generator, dtype=torch.float64)
    covariance = torch.linspace(0.3, 1.5, 10, dtype=torch.float64).diag() + loadings.T @ loadings
    mean = torch.linspace(-0.5, 0.5, 10, dtype=torch.float64)
    stiffness = torch.linalg.inv(covariance)
    energy = pyrocg.Harmonic(10, 0.5 * (stiffness + stiffness.T), mean)
    square = pyrocg.Observable("x1 squared", "", lambda x: np.asarray(x, float)[:, 0] ** 2)
    above = torch.special.ndtr((mean[0] - 0.5) / covariance[0, 0].sqrt())
    truth = [
        (observables.coordinate(0), float(mean[0]), 0.0),
        (observables.coordinate(9), float(mean[9]), 0.0),
        (square, float(covariance[0, 0] + mean[0] ** 2), 0.0),
        (observables.population_above(0.5), float(above), 0.0),
    ]
    return Case("harmonic, 10 dimensions", toy(energy, 2), truth, steps=30, learning_rate=2e-2)


def molecule() -> Case:
    """Alanine dipeptide, whose truth is a simulation with an error of its own."""
    known = json.loads(REFERENCE.read_text())["averages"]
    system = pyrocg.alanine_dipeptide()
    found = (*observables.basin_populations(system), observables.radius_of_gyration(system))
    truth = []
    for observable in found:
        name = f"{observable.name}, trans only"
        value = known.get(name, known[observable.name])
        truth.append((observable, value["mean"], value["standard_error"]))
    return Case("alanine dipeptide", quickstart_model(system), truth, 300, 252, 5e-3, 20_000)


def quickstart_model(system: pyrocg.Molecule) -> Callable[[int], CoarseGrainedModel]:
    energy = pyrocg.CompiledEnergy(system, dtype=torch.float32)
    target = pyrocg.BoltzmannTarget(energy, temperature=330)
    coordinates = pyrocg.InternalCoordinates(system)
    found: list[Basins] = []

    def build(seed: int) -> CoarseGrainedModel:
        found[:] = found or [find_basins(target, coordinates)]
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return CoarseGrainedModel.from_basins(target, coordinates, found[0])

    return build


# Coverage


def measured(case: Case, seed: int, laplace: bool) -> list[Row]:
    model = case.trained(seed)
    if laplace:
        prediction = case.predict(model, seed, posterior=case.posterior(model))
        return rows(case, seed, prediction, ", Laplace")
    return rows(case, seed, case.predict(model, seed), "", own_bias(case, model, seed))


def own_bias(case: Case, model: CoarseGrainedModel, seed: int, n: int = 50_000) -> list[float]:
    """How far the model's own averages are off the truth, in standard errors of n new samples.

    From the mean of (1 - w) (f - truth), which has far less noise than that of f where weights are
    nearly equal. The numbers of samples of the components are fixed: only the spread within them is
    noise.
    """
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
        wanted += [(case, seed, laplace) for laplace in (False, True) for seed in range(10)]
    for case, seed, laplace in wanted:
        if (case.name, seed, laplace) in known:
            continue
        found = measured(case, seed, laplace)
        kept += found
        if options.rows:
            with options.rows.open("a") as file:
                file.writelines(json.dumps(asdict(row)) + "\n" for row in found)
    return kept


def coverage_table(every: Sequence[Row]) -> None:
    head = "target | of | average | intervals with k-hat < 0.7 | 95 % hold | 80 % | 50 % | "
    print(f"\n| {head}width | k-hat >= 0.7 |\n|" + "---|" * 9)
    for case in dict.fromkeys(row.case for row in every):
        for population in (False, True):
            for way in WAYS:
                own = [
                    r for r in every if (r.case, r.way, r.is_population) == (case, way, population)
                ]
                if own:
                    print(coverage_line(case, "populations" if population else "means", way, own))


def coverage_line(case: str, of: str, way: str, own: Sequence[Row]) -> str:
    good = [row for row in own if row.trusted]
    cells = [case, of, way, str(len(good))]
    for i in range(len(LEVELS)):
        hits = sum(row.held[i] for row in good)
        cells.append(share(hits, len(good)) if i == 0 else percent(hits, len(good)))
    width = f"{np.mean([row.width for row in good]):.3g}" if good else "—"
    return "| " + " | ".join([*cells, width, percent(len(own) - len(good), len(own))]) + " |"


def share(hits: int, n: int) -> str:
    """A percentage with its 95 % interval."""
    if n == 0:
        return "—"
    low, high = wilson(hits, n)
    return f"{100 * hits / n:.1f} % [{100 * low:.1f}, {100 * high:.1f}]"


def wilson(hits: int, n: int) -> tuple[float, float]:
    """95 % interval of a share, by Wilson (1927)."""
    z, p = 1.96, hits / n
    middle, half = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return (middle - half) / (1 + z * z / n), (middle + half) / (1 + z * z / n)


def percent(hits: int, n: int) -> str:
    return f"{100 * hits / n:.0f} %" if n else "—"


def warning_table(every: Sequence[Row]) -> None:
    """How often ``model_bias`` is given, by how far the plain average is off."""
    head = "plain average is off by | cases with k-hat < 0.7 | `model_bias` given"
    print(f"\n| target | {head} |\n|" + "---|" * 4)
    plain = [row for row in every if row.way == "plain" and row.trusted]
    for case in dict.fromkeys(row.case for row in plain):
        own = [row for row in plain if row.case == case]
        inside, outside = [r for r in own if r.held[0]], [r for r in own if not r.held[0]]
        groups = {
            "more than its 95 % interval": outside,
            "of these, less than 4 standard deviations": [r for r in outside if abs(r.error) < 4],
            "of these, 4 or more": [r for r in outside if abs(r.error) >= 4],
            "less, but 50 000 other samples show a bias": [r for r in inside if abs(r.bias) >= 3],
            "less, and 50 000 other samples show none": [r for r in inside if abs(r.bias) < 3],
        }
        for what, those in groups.items():
            given = share(sum(r.warned for r in those), len(those))
            print(f"| {case} | {what} | {len(those)} | {given} |")


def calibration_figure(every: Sequence[Row], path: Path) -> None:
    """Nominal against empirical coverage, one panel for each way."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    ways = [way for way in WAYS if any(row.way == way for row in every)]
    names = list(dict.fromkeys(row.case for row in every))
    size = (3.1 * len(ways), 4.2)
    figure, axes = pyplot.subplots(1, len(ways), figsize=size, sharey=True, squeeze=False)
    nominal = 100 * np.array(LEVELS)
    for axis, way in zip(axes[0], ways, strict=True):
        axis.plot([0, 100], [0, 100], color="0.6", linewidth=1, linestyle="--")
        for k, case in enumerate(names):
            for population in (False, True):
                own = [
                    r
                    for r in every
                    if (r.case, r.way, r.is_population) == (case, way, population) and r.trusted
                ]
                if not own:
                    continue
                hits = np.array([r.held for r in own]).sum(0)
                p, ends = hits / len(own), np.array([wilson(h, len(own)) for h in hits])
                label = f"{case}, {'populations' if population else 'means'}"
                axis.errorbar(
                    nominal + 1.1 * (2 * k + population - len(names) + 0.5),
                    100 * p,
                    100 * np.abs(ends.T - p),
                    marker="s" if population else "o",
                    markerfacecolor="white" if population else f"C{k}",
                    color=f"C{k}",
                    linestyle="none",
                    markersize=5,
                    label=label,
                )
        axis.set(title=way, xlabel="promised, %", xlim=(40, 104), ylim=(0, 104))
        axis.set_xticks([50, 80, 95])
        axis.grid(axis="y", color="0.92")
    axes[0, 0].set_ylabel("intervals that hold the exact value, %")
    found = {}
    for axis in axes[0]:
        handles, labels = axis.get_legend_handles_labels()
        found |= dict(zip(labels, handles, strict=True))
    figure.legend(found.values(), found.keys(), loc="lower center", ncols=3, frameon=False)
    figure.tight_layout(rect=(0, 0.06 + 0.05 * math.ceil(len(found) / 3), 1, 1))
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


# Widths and cost


def widths(options: argparse.Namespace) -> None:
    """Widths of 95 % intervals against what should make them narrow."""
    print("\n| target | average | against | | | |\n|" + "---|" * 6)
    for case in cases(options.cases):
        samples, steps, scales = (2500, 10_000, 40_000), (1, 4, 16), (1e3, 1e4, 1e5)
        model = case.trained(0)
        found = [case.predict(model, 0, num_samples=n) for n in samples]
        line(case, "corrected", "samples", samples, found, True)
        line(case, "plain", "samples", samples, found, False)
        longer = [case.steps * factor for factor in steps]
        found = [case.predict(case.trained(0, n), 0) for n in longer]
        line(case, "corrected", "training steps", longer, found, True)
        posteriors = [case.posterior(model, gibbs_scale=n) for n in scales]
        found = [case.predict(model, 0, posterior=p) for p in posteriors]
        line(case, "plain, Laplace", "Gibbs scale N", scales, found, False)


def line(
    case: Case,
    way: str,
    against: str,
    values: Sequence[float],
    found: Sequence[Prediction],
    corrected: bool,
) -> None:
    name = case.truth[0][0].name
    cells = []
    for value, prediction in zip(values, found, strict=True):
        low, high = prediction.estimate(name, corrected).interval
        cells.append(f"{value:g}: {high - low:.3g}")
    print(f"| {case.name} | {way}, {name} | {against} | " + " | ".join(cells) + " |", flush=True)


def cost() -> None:
    """Seconds and memory for a decoder of the quickstart's size, at its start."""
    system = pyrocg.alanine_dipeptide()
    model = quickstart_model(system)(0)
    model.sample(100)  # compiles
    found: list[LaplacePosterior] = []
    weights = sum(p.numel() for p in model.decoder.parameters())
    print(f"\nDecoder of {weights} weights\n\n| what | s | peak memory so far, MiB |")
    print("|---|---|---|")
    timed("start", lambda: None)
    timed(
        "Laplace posterior, 1000 draws",
        lambda: found.append(LaplacePosterior.fit(model, n_samples=1.5e6)),
    )
    what = observables.basin_populations(system)

    def predict(posterior: LaplacePosterior | None) -> None:
        made = pyrocg.predict(model, what, 100_000, posterior=posterior, progress=False)
        made.estimates()

    timed("prediction from 1e5 samples", lambda: predict(None))
    timed("the same, of 20 draws of the posterior", lambda: predict(found[0]))


def timed(what: str, action: Callable[[], Any]) -> None:
    wall, processor = time.perf_counter(), time.process_time()
    action()
    wall, processor = time.perf_counter() - wall, time.process_time() - processor
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"| {what} | {processor:.0f} (wall {wall:.0f}) | {peak:.0f} |", flush=True)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parts, names = ["coverage", "widths", "cost"], ["double_well", "mixture", "harmonic"]
    parser.add_argument("--seeds", type=int, default=60)
    parser.add_argument("--parts", nargs="+", choices=parts, default=parts)
    parser.add_argument("--cases", nargs="*", choices=names, default=names)
    parser.add_argument("--molecule", action="store_true", help="10 seeds of alanine dipeptide too")
    parser.add_argument("--laplace-seeds", type=int, default=60, help="with a posterior too")
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
        print(f"\n{time.perf_counter() - started:.0f} s")
        if options.figure:
            calibration_figure(every, options.figure)
    if "widths" in options.parts:
        widths(options)
    if "cost" in options.parts:
        cost()


if __name__ == "__main__":
    main()
