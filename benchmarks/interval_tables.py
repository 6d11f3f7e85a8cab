"""Tables and a figure of how often intervals hold the exact value."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pyrocg.cautions import MAX_PARETO_K

LEVELS = (0.95, 0.8, 0.5)
WAYS = ("corrected", "plain", "corrected, Laplace", "plain, Laplace")


@dataclass(frozen=True)
class Row:
    """One interval.

    Attributes:
        case: name of the target.
        seed: of training and prediction.
        way: one of :data:`WAYS`.
        observable: its name.
        held: whether the interval of each of :data:`LEVELS` holds the truth.
        mean: the estimate.
        deviation: its own standard deviation.
        width: of the 95 % interval.
        error: of the estimate, in its own standard deviations.
        bias: of the model's own average, see ``interval_coverage.own_bias``; NaN with a posterior.
        k_hat: of the prediction.
        ess: of the prediction, a fraction.
        warned: whether ``model_bias`` was given for this observable.
    """

    case: str
    seed: int
    way: str
    observable: str
    held: tuple[bool, ...]
    mean: float
    deviation: float
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


def coverage_table(every: Sequence[Row]) -> None:
    head = "target | of | average | intervals with k-hat < 0.7 | 95 % hold | 80 % | 50 % | "
    print(f"\n| {head}width | k-hat >= 0.7 |\n|" + "---|" * 9)
    for case in dict.fromkeys(row.case for row in every):
        for population in (False, True):
            for way, those in ways(every):
                own = [r for r in those if (r.case, r.is_population) == (case, population)]
                if own:
                    print(coverage_line(case, "populations" if population else "means", way, own))


def ways(every: Sequence[Row]) -> list[tuple[str, list[Row]]]:
    """Rows of each of :data:`WAYS`, and the plain ones without a warning."""
    found = [(way, [row for row in every if row.way == way]) for way in WAYS]
    quiet = [row for row in every if row.way == "plain" and not row.warned]
    return [*found[:2], ("plain, not warned", quiet), *found[2:]]


def coverage_line(case: str, of: str, way: str, own: Sequence[Row]) -> str:
    good = [row for row in own if row.trusted]
    cells = [case, of, way, str(len(good))]
    for i in range(len(LEVELS)):
        hits = sum(row.held[i] for row in good)
        cells.append(share(hits, len(good)) if i == 0 else percent(hits, len(good)))
    width = f"{np.mean([row.width for row in good]):.3g}" if good else "—"
    return "| " + " | ".join([*cells, width, percent(len(own) - len(good), len(own))]) + " |"


def spread_table(every: Sequence[Row]) -> None:
    """Corrected averages of one seed against those of the others: no truth is needed."""
    head = "target | average | seeds with k-hat < 0.7 | mean | spread / own error"
    print(f"\n| {head} | 95 % hold the mean of the others |\n|" + "---|" * 6)
    rows = [row for row in every if row.way == "corrected" and row.trusted]
    for case, name in dict.fromkeys((row.case, row.observable) for row in rows):
        own = [row for row in rows if (row.case, row.observable) == (case, name)]
        n = len(own)
        if n < 2:
            continue
        mean, deviation = np.array([(row.mean, row.deviation) for row in own]).T
        ratio = mean.std(ddof=1) / math.sqrt((deviation**2).mean())
        away = mean - (mean.sum() - mean) / (n - 1)
        error = np.sqrt(deviation**2 + ((deviation**2).sum() - deviation**2) / (n - 1) ** 2)
        hits = int((np.abs(away) < 1.96 * error).sum())
        print(f"| {case} | {name} | {n} | {mean.mean():.4g} | {ratio:.2f} | {share(hits, n)} |")


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
            "less, but other samples show a bias": [r for r in inside if abs(r.bias) >= 3],
            "less, and other samples show none": [r for r in inside if abs(r.bias) < 3],
        }
        for what, those in groups.items():
            given = share(sum(r.warned for r in those), len(those))
            print(f"| {case} | {what} | {len(those)} | {given} |")


def calibration_figure(every: Sequence[Row], path: Path) -> None:
    """Nominal against empirical coverage, one panel for each way."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    panels = [(way, those) for way, those in ways(every) if those]
    names = list(dict.fromkeys(row.case for row in every))
    size = (3.1 * len(panels), 4.2)
    figure, axes = pyplot.subplots(1, len(panels), figsize=size, sharey=True, squeeze=False)
    nominal = 100 * np.array(LEVELS)
    for axis, (way, those) in zip(axes[0], panels, strict=True):
        axis.plot([0, 100], [0, 100], color="0.6", linewidth=1, linestyle="--")
        for k, case in enumerate(names):
            for population in (False, True):
                own = [
                    r
                    for r in those
                    if (r.case, r.is_population) == (case, population) and r.trusted
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
    found: dict[str, Any] = {}
    for axis in axes[0]:
        handles, labels = axis.get_legend_handles_labels()
        found |= dict(zip(labels, handles, strict=True))
    figure.legend(list(found.values()), list(found), loc="lower center", ncols=3, frameon=False)
    figure.tight_layout(rect=(0, 0.06 + 0.05 * math.ceil(len(found) / 3), 1, 1))
    figure.savefig(path, dpi=150)
    pyplot.close(figure)
