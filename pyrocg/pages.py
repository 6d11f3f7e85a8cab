"""The pictures that a run ends with: results in, Matplotlib figures out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pyrocg.plotting import (
    ANGLE_TICKS,
    GROUP_COLOURS,
    component_populations,
    described,
    free_energy_label,
    free_energy_map,
    free_energy_profile,
    histogram_of_counts,
    latent_map,
    observable_histogram,
    ramachandran,
    training_history,
    weights_histogram,
)
from pyrocg.prediction import Prediction

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["prediction_pages", "training_page"]


def training_page(history: Mapping[str, Sequence[float]], note: str = "") -> Figure:
    """Return the course of a training as a figure."""
    tempered = any(t != 1 for t in history["t"])
    figure, axes = _figure(1, 3 if tempered else 2, width=4.0, height=3.0)
    training_history(history, list(axes.flat))
    if note:
        figure.suptitle(note, fontsize="medium")
    return figure


def prediction_pages(
    prediction: Prediction,
    kt: float | None = None,
    phi_psi: NDArray[np.float64] | None = None,
    reference: Mapping[str, Mapping[str, Any]] | None = None,
) -> dict[str, Figure]:
    """Return every figure that a prediction has data for, by file name.

    Args:
        prediction: the results.
        kt: thermal energy in kJ/mol; None for toys.
        phi_psi: reference counts of (phi, psi), see :func:`histogram_of_counts`.
        reference: observable to its known ``mean``.
    """
    pages = {"weights.png": _single(weights_histogram, prediction)}
    for phi, psi in _torsion_pairs(prediction):
        name = phi.replace("phi", "ramachandran") + ".png"
        pages[name] = _ramachandran_page(prediction, phi, psi, kt, phi_psi)
        if kt is not None:
            pages[name.replace("ramachandran", "free_energy")] = _free_energy_page(
                prediction, phi, psi, kt
            )
    if prediction.observables:
        pages["uncertainty.png"] = _uncertainty_page(prediction)
    names = [o.name for o in prediction.observables if not o.name.startswith("population")]
    if names:
        pages["observables.png"] = _observables_page(prediction, names, reference or {})
    if prediction.latents.get("z") is not None:
        pages["latent.png"] = _latent_page(prediction)
    if "component" in prediction.latents:
        pages["components.png"] = _single(component_populations, prediction)
    return pages


def _ramachandran_page(
    prediction: Prediction,
    phi: str,
    psi: str,
    kt: float | None,
    counts: NDArray[np.float64] | None,
) -> Figure:
    bins = 72 if counts is None else len(counts)
    panels = {
        "model": prediction.histogram(phi, psi, bins=bins, corrected=False),
        "reweighted model": prediction.histogram(phi, psi, bins=bins),
    }
    if counts is not None:
        panels["reference"] = histogram_of_counts(counts)
    figure, axes = _figure(1, len(panels), width=3.5, height=3.4, shared=True)
    suffix = phi.removeprefix("phi").replace("_", " ")
    labels = (f"φ{suffix} (°)", f"ψ{suffix} (°)")
    zero = list(panels.values())[-1].density.max()
    for ax, (title, histogram) in zip(axes.flat, panels.items(), strict=True):
        image = ramachandran(histogram, ax, kt=kt, zero=zero, title=title, labels=labels)
    for ax in axes.flat[1:]:
        ax.set_ylabel("")
    figure.colorbar(
        image, ax=list(axes.flat), label=free_energy_label(kt), extend="max", shrink=0.8
    )
    return figure


def _free_energy_page(prediction: Prediction, phi: str, psi: str, kt: float) -> Figure:
    """Profiles of both torsions with bands, and the uncertainty of the surface over them."""
    figure, axes = _figure(1, 3, width=3.9, height=3.3)
    for ax, name in zip(axes.flat, (phi, psi), strict=False):
        free_energy_profile(
            prediction.free_energy(name, bins=60),
            ax,
            label=described(prediction, name)[1],
            plain=prediction.free_energy(name, bins=60, corrected=False),
            degrees=True,
            highest=12.0 * kt,
        )
    axes[0, 0].legend(frameon=False, fontsize="small")
    labels = (described(prediction, phi)[1], described(prediction, psi)[1])
    title = f"half of the {100 * prediction.level:g} % interval"
    surface = prediction.free_energy(phi, psi, bins=36)
    image = free_energy_map(surface, axes[0, 2], error=True, title=title, labels=labels)
    figure.colorbar(image, ax=axes[0, 2], label=free_energy_label(1.0), shrink=0.8)
    return figure


def _observables_page(
    prediction: Prediction, names: Sequence[str], reference: Mapping[str, Mapping[str, Any]]
) -> Figure:
    columns = min(3, len(names))
    figure, axes = _figure(-(-len(names) // columns), columns, width=3.6, height=2.8)
    for ax in axes.flat[len(names) :]:
        ax.remove()
    for ax, name in zip(axes.flat, names, strict=False):
        observable = next(o for o in prediction.observables if o.name == name)
        values, label, _ = described(prediction, name)
        limits = None if observable.circular else _bulk(values)
        observable_histogram(
            prediction.histogram(name, limits=limits),
            ax,
            label=label,
            plain=prediction.histogram(name, limits=limits, corrected=False),
            reference=reference.get(name, {}).get("mean"),
            degrees=observable.circular,
            log=not observable.unit,
        )
    figure.legend(
        *axes[0, 0].get_legend_handles_labels(),
        loc="outside upper center",
        ncols=3,
        frameon=False,
    )
    return figure


def _uncertainty_page(prediction: Prediction) -> Figure:
    """Where the variance of every average comes from: weights of the decoder, samples, weights."""
    names = [o.name for o in prediction.observables]
    figure, axes = _figure(1, 2, width=4.2, height=0.9 + 0.28 * len(names), shared=True)
    parts = {"posterior": "posterior", "monte_carlo": "Monte Carlo", "weights": "weights"}
    for ax, corrected in zip(axes.flat, (False, True), strict=True):
        found = [prediction.estimate(name, corrected) for name in names]
        total = np.array([e.standard_deviation for e in found])
        left = np.zeros(len(names))
        for colour, (part, label) in zip(GROUP_COLOURS, parts.items(), strict=False):
            own = np.array([getattr(e, part) for e in found])
            share = 100.0 * (own / np.where(total > 0, total, 1.0)) ** 2
            ax.barh(names, share, left=left, color=colour, label=label)
            left = left + share
        ax.set_title("importance-corrected" if corrected else "model's own", fontsize="medium")
        ax.set_xlabel("share of the variance (%)")
        ax.set_xlim(0.0, 100.0)
    axes[0, 0].invert_yaxis()
    figure.legend(
        *axes[0, 0].get_legend_handles_labels(),
        loc="outside upper center",
        ncols=3,
        frameon=False,
    )
    return figure


def _latent_page(prediction: Prediction) -> Figure:
    """A panel for each of the 12 largest components, coloured by the first angle; or one."""
    angles = [o.name for o in prediction.observables if o.circular]
    group = prediction.latents.get("component")
    if not angles or group is None or prediction.latents["z"].shape[1] < 2:
        return _single(latent_map, prediction, *angles[:1])
    weight = np.bincount(group, prediction.weights().numpy())
    components = [int(k) for k in weight.argsort()[::-1][:12] if (group == k).any()]
    columns = min(4, len(components))
    rows = -(-len(components) // columns)
    figure, axes = _figure(rows, columns, width=2.6, height=2.5, shared=True)
    for ax in axes.flat[len(components) :]:
        ax.remove()
    drawn = list(axes.flat[: len(components)])
    for place, (ax, k) in enumerate(zip(drawn, components, strict=True)):
        image = latent_map(prediction, ax, angles[0], component=k)
        share = 100 * weight[k] / weight.sum()
        ax.set_title(f"component {k + 1}: {share:.2g} %", fontsize="medium")
        ax.label_outer()
        if place + columns >= len(drawn):  # nothing below
            ax.xaxis.set_tick_params(labelbottom=True)
            ax.set_xlabel("$z_1$")
    label = described(prediction, angles[0])[1]
    figure.colorbar(image, ax=drawn, label=label, ticks=ANGLE_TICKS)
    return figure


def _torsion_pairs(prediction: Prediction) -> list[tuple[str, str]]:
    names = [o.name for o in prediction.observables]
    pairs = [(n, "psi" + n.removeprefix("phi")) for n in names if n.startswith("phi")]
    return [pair for pair in pairs if pair[1] in names]


def _bulk(values: NDArray[np.float64]) -> tuple[float, float]:
    """A range that holds nearly all values."""
    low, high = np.quantile(values, [0.0005, 0.9995])
    margin = 0.05 * (high - low) or 1.0
    return float(low - margin), float(high + margin)


def _figure(
    rows: int, columns: int, width: float, height: float, shared: bool = False
) -> tuple[Figure, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width * columns, height * rows), layout="constrained")
    axes: Any = figure.subplots(rows, columns, squeeze=False, sharex=shared, sharey=shared)
    return figure, axes


def _single(draw: Any, prediction: Prediction, *options: Any) -> Figure:
    figure, axes = _figure(1, 1, width=5.0, height=3.8)
    image = draw(prediction, axes[0, 0], *options)
    if image is not None:
        figure.colorbar(image, ax=axes[0, 0], label=described(prediction, options[0])[1])
    return figure
