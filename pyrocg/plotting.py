"""Plots: results in, Matplotlib Axes out. Nothing is predicted, saved or printed here.

Colours can be told apart with any colour vision: viridis for amounts, a cyclic twilight for angles,
Okabe and Ito's colours for groups. Angles are in degrees.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pyrocg.prediction import Histogram, Prediction

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "component_populations",
    "histogram_of_counts",
    "latent_map",
    "observable_histogram",
    "prediction_pages",
    "ramachandran",
    "training_history",
    "training_page",
    "weights_histogram",
]

GROUP_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe and Ito's, without yellow, which is faint on white."""
_MODEL, _CORRECTED, _REFERENCE = "#D55E00", "#0072B2", "#000000"
_MARKERS = "os^Dv<>P"
_ANGLE_TICKS = (-180, -90, 0, 90, 180)


def histogram_of_counts(counts: NDArray[np.float64]) -> Histogram:
    """Return a table of counts over the square of two angles as a density without intervals."""
    n = len(counts)
    edges = np.linspace(-math.pi, math.pi, n + 1)
    density = counts / counts.sum() / (edges[1] - edges[0]) ** 2
    return Histogram((edges, edges), density, density, density)


def ramachandran(
    histogram: Histogram,
    ax: Axes,
    *,
    kt: float | None = None,
    zero: float | None = None,
    title: str = "",
    labels: tuple[str, str] = ("φ (°)", "ψ (°)"),
) -> Any:
    """Draw the free energy -kT ln p of two angles up to 8 kT; bins without samples stay white.

    Args:
        histogram: density of two angles in rad.
        ax: to draw on.
        kt: thermal energy in kJ/mol; None draws in units of kT.
        zero: density whose free energy is 0, to compare panels; default the highest.
        title: of the axes.
        labels: of both axes.

    Returns:
        What a colour bar takes; label it by :func:`free_energy_label`.
    """
    kt = kt or 1.0
    density = histogram.density
    with np.errstate(divide="ignore"):
        surface = -kt * np.log(density / (zero or density.max()))
    surface = np.ma.masked_invalid(surface.T)
    x, y = (np.rad2deg(edge) for edge in histogram.edges)
    image = ax.pcolormesh(x, y, surface, cmap="viridis", vmin=0, vmax=8 * kt, rasterized=True)
    ax.set(xlabel=labels[0], ylabel=labels[1], title=title, aspect="equal")
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_ticks(_ANGLE_TICKS)
    ax.set(xlim=(-180, 180), ylim=(-180, 180))
    return image


def free_energy_label(kt: float | None) -> str:
    """Return the label of a colour bar of free energies."""
    return "free energy (kJ/mol)" if kt else "free energy ($k_BT$)"


def training_history(history: Mapping[str, Sequence[float]], axes: Sequence[Axes]) -> None:
    """Draw the course of a training: bound and log Z, ESS, and on a third axes t.

    The first axes show the range of the second half of the training; what lies outside is cut.

    Args:
        history: columns step, elbo, log_z, ess and t, as in :class:`~pyrocg.training.FitResult`.
        axes: two, or three.
    """
    bound, efficiency = axes[:2]
    step = np.asarray(history["step"])
    for name, label, colour in (("log_z", "log Z", _CORRECTED), ("elbo", "ELBO", _MODEL)):
        bound.plot(step, history[name], color=colour, label=label, linewidth=1.2)
    bound.set(ylabel="nats", title="bound and log Z")
    late = np.concatenate([np.asarray(history[n])[len(step) // 2 :] for n in ("elbo", "log_z")])
    late = late[np.isfinite(late)]
    if len(late) and np.ptp(late) > 0:
        bound.set_ylim(late.min() - 0.6 * np.ptp(late), late.max() + 0.3 * np.ptp(late))
    bound.legend(frameon=False, loc="lower right", ncols=2)
    efficiency.plot(step, 100 * np.asarray(history["ess"]), color=_CORRECTED, linewidth=1.2)
    efficiency.set(ylabel="%", ylim=(0, 100), title="effective sample size")
    for temper in axes[2:]:
        temper.plot(step, history["t"], color=_REFERENCE, linewidth=1.2)
        temper.set(ylabel="t", ylim=(0, 1.05), title="tempering factor")
    for ax in axes:
        ax.set_xlabel("step")
        ax.grid(alpha=0.3)


def observable_histogram(
    histogram: Histogram,
    ax: Axes,
    *,
    label: str,
    plain: Histogram | None = None,
    reference: float | None = None,
    degrees: bool = False,
    log: bool = False,
) -> None:
    """Draw the density of one observable with the interval of every bin as a band; no legend.

    Args:
        histogram: of one observable.
        ax: to draw on.
        label: of the horizontal axis, with the unit.
        plain: the model's own, drawn as a line over the same range.
        reference: a mean known from elsewhere, drawn as a vertical line.
        degrees: whether rad become degrees.
        log: whether the density is on a log scale, which shows rare states.
    """
    scale = 180.0 / math.pi if degrees else 1.0
    edges = histogram.edges[0] * scale
    low, high = (np.append(h, h[-1]) / scale for h in (histogram.lower, histogram.upper))
    ax.fill_between(edges, low, high, step="post", color=_CORRECTED, alpha=0.3, linewidth=0)
    ax.stairs(histogram.density / scale, edges, color=_CORRECTED, label="reweighted")
    if plain is not None:
        ax.stairs(
            plain.density / scale, plain.edges[0] * scale, color=_MODEL, ls="--", label="model"
        )
    if reference is not None:
        ax.axvline(reference * scale, color=_REFERENCE, ls=":", label="reference mean")
    ax.set(xlabel=label, ylabel="density", xlim=(edges[0], edges[-1]))
    if degrees:
        ax.set_xticks(_ANGLE_TICKS)
    if log:
        lowest = histogram.density[histogram.density > 0].min() / scale
        ax.set_yscale("log")
        ax.set_ylim(0.3 * lowest, 3 * histogram.density.max() / scale)
    else:
        ax.set_ylim(bottom=0)


def weights_histogram(prediction: Prediction, ax: Axes) -> None:
    """Draw the log weights; a perfect model has them all at 0. Weights of 0 are left out."""
    log_w = prediction.log_weights.numpy() - prediction.log_z
    log_w = log_w[np.isfinite(log_w)]
    low, high = np.quantile(log_w, 0.0005) - 0.3, log_w.max() + 0.3
    ax.hist(log_w, bins=np.linspace(low, high, 80), color=_CORRECTED, log=True)
    ax.axvline(0.0, color=_REFERENCE, ls=":")
    ax.set(
        xlabel="log importance weight - log Z (nats)",
        ylabel="samples",
        title=f"ESS {100 * prediction.ess:.1f} % of {len(prediction.log_weights):,}, "
        f"Pareto k-hat {prediction.pareto_k:.2f}",
    )


def latent_map(
    prediction: Prediction,
    ax: Axes,
    colour: str | None = None,
    component: int | None = None,
    most: int = 4000,
) -> Any:
    """Draw samples at their collective variables z, coloured by an observable or by component.

    With one collective variable, the observable (or the first one) is the vertical axis.

    Args:
        prediction: with a latent site "z".
        ax: to draw on.
        colour: observable that colours the samples; angles get a cyclic colour map.
        component: draw only this component of a mixture latent.
        most: how many samples are drawn, the first ones.

    Returns:
        What a colour bar takes, or None without ``colour``.
    """
    z, group = prediction.latents["z"], prediction.latents.get("component")
    chosen = np.arange(len(z))
    if component is not None and group is not None:
        chosen = np.flatnonzero(group == component)
    chosen = chosen[:most]
    z = z[chosen]
    name = colour or prediction.observables[0].name
    values, vertical_label, scale = _values(prediction, name)
    vertical = z[:, 1] if z.shape[1] > 1 else values[chosen]
    ax.set(xlabel="$z_1$", ylabel="$z_2$" if z.shape[1] > 1 else vertical_label)
    style: dict[str, Any] = {"s": 9, "linewidths": 0.25, "rasterized": True}
    if colour is not None and z.shape[1] > 1:
        return ax.scatter(z[:, 0], vertical, c=values[chosen], edgecolors="0.4", **scale, **style)
    groups = np.zeros(len(z), dtype=int) if group is None else group[chosen]
    for k in np.unique(groups):
        here, shade = groups == k, GROUP_COLOURS[k % len(GROUP_COLOURS)]
        marker = _MARKERS[k % len(_MARKERS)]
        style |= {"color": shade, "marker": marker, "label": f"{k + 1}"}
        ax.scatter(z[here, 0], vertical[here], **style)
    if group is not None:
        ax.legend(title="component", frameon=False, fontsize="small", markerscale=2)
    return None


def component_populations(prediction: Prediction, ax: Axes) -> None:
    """Draw the share of every component of a mixture latent: the model's, and reweighted."""
    group = prediction.latents["component"]
    n = int(group.max()) + 1
    place = np.arange(n)
    for corrected, label, colour, marker in (
        (False, "model", _MODEL, "D"),
        (True, "reweighted", _CORRECTED, "o"),
    ):
        weights = prediction.weights(corrected).numpy()
        share = 100 * np.bincount(group, weights, n) / weights.sum()
        ax.plot(place, share, marker, color=colour, fillstyle="none", label=label)
    ax.set(xlabel="component", ylabel="share (%)", yscale="log")
    ax.set_xticks(place, [str(k + 1) for k in place], fontsize="small")
    ax.grid(alpha=0.3)
    ax.legend(frameon=False, fontsize="small")


# Pages: the pictures that a run ends with.


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


def _observables_page(
    prediction: Prediction, names: Sequence[str], reference: Mapping[str, Mapping[str, Any]]
) -> Figure:
    columns = min(3, len(names))
    figure, axes = _figure(-(-len(names) // columns), columns, width=3.6, height=2.8)
    for ax in axes.flat[len(names) :]:
        ax.remove()
    for ax, name in zip(axes.flat, names, strict=False):
        observable = next(o for o in prediction.observables if o.name == name)
        values, label, _ = _values(prediction, name)
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
    label = _values(prediction, angles[0])[1]
    figure.colorbar(image, ax=drawn, label=label, ticks=_ANGLE_TICKS)
    return figure


def _torsion_pairs(prediction: Prediction) -> list[tuple[str, str]]:
    names = [o.name for o in prediction.observables]
    pairs = [(n, "psi" + n.removeprefix("phi")) for n in names if n.startswith("phi")]
    return [pair for pair in pairs if pair[1] in names]


def _values(prediction: Prediction, name: str) -> tuple[NDArray[np.float64], str, dict[str, Any]]:
    """Values of an observable as drawn, its label with unit, and its colours."""
    observable = next(o for o in prediction.observables if o.name == name)
    values, unit, words = prediction.values[name], observable.unit, name.replace("_", " ")
    scale: dict[str, Any] = {"cmap": "viridis"}
    if observable.circular:
        values, unit = np.rad2deg(values), "°"
        words = words.replace("phi", "φ").replace("psi", "ψ")
        scale = {"cmap": "twilight", "vmin": -180.0, "vmax": 180.0}
    return values, f"{words} ({unit})" if unit else words, scale


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
        figure.colorbar(image, ax=axes[0, 0], label=_values(prediction, options[0])[1])
    return figure
