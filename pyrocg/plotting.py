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

from pyrocg.estimates import FreeEnergySurface, Histogram
from pyrocg.prediction import Prediction

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = [
    "component_populations",
    "described",
    "free_energy_label",
    "free_energy_map",
    "free_energy_profile",
    "histogram_of_counts",
    "latent_map",
    "observable_histogram",
    "ramachandran",
    "training_history",
    "weights_histogram",
]

GROUP_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe and Ito's, without yellow, which is faint on white."""
_MODEL, _CORRECTED, _REFERENCE = "#D55E00", "#0072B2", "#000000"
_MARKERS = "os^Dv<>P"
ANGLE_TICKS = (-180, -90, 0, 90, 180)


def histogram_of_counts(counts: NDArray[np.float64]) -> Histogram:
    """Return a table of counts over the square of two angles as a density without intervals."""
    n = len(counts)
    edges = np.linspace(-math.pi, math.pi, n + 1)
    density = counts / counts.sum() / (edges[1] - edges[0]) ** 2
    zero = np.zeros_like(density)
    return Histogram((edges, edges), density, density, density, zero, zero, zero)


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
        axis.set_ticks(ANGLE_TICKS)
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
        ax.set_xticks(ANGLE_TICKS)
    if log:
        lowest = histogram.density[histogram.density > 0].min() / scale
        ax.set_yscale("log")
        ax.set_ylim(0.3 * lowest, 3 * histogram.density.max() / scale)
    else:
        ax.set_ylim(bottom=0)


def free_energy_profile(
    surface: FreeEnergySurface,
    ax: Axes,
    *,
    label: str,
    plain: FreeEnergySurface | None = None,
    degrees: bool = False,
    highest: float | None = None,
) -> None:
    """Draw the free energy over one observable with the interval of every bin as a band; no legend.

    Bins without samples are left out; where the band has no upper end, it leaves the picture.

    Args:
        surface: over one observable.
        ax: to draw on.
        label: of the horizontal axis, with the unit.
        plain: the model's own, likewise with its band.
        degrees: whether rad become degrees.
        highest: energies above leave the picture, kJ/mol; a bin whose samples have next to no
            weight can be hundreds high. Default none does.
    """
    scale = 180.0 / math.pi if degrees else 1.0
    drawn = [(surface, _CORRECTED, "-", "reweighted")]
    if plain is not None:
        drawn.append((plain, _MODEL, "--", "model"))
    top = 0.0
    for found, colour, line, name in drawn:
        edges = found.edges[0] * scale
        middle = 0.5 * (edges[1:] + edges[:-1])
        known = np.isfinite(found.energy)
        top = max(top, float(np.max(found.energy[known])))
        upper = np.nan_to_num(found.upper, nan=np.nan, posinf=1e6)
        ax.fill_between(
            middle, found.lower, upper, where=known, color=colour, alpha=0.3, linewidth=0
        )
        energy = np.where(known, found.energy, np.nan)
        ax.plot(middle, energy, color=colour, ls=line, label=name, linewidth=1.2)
    ax.set(xlabel=label, ylabel=free_energy_label(1.0), xlim=(edges[0], edges[-1]))
    top = min(top, math.inf if highest is None else highest) or 1.0
    ax.set_ylim(-0.05 * top, 1.15 * top)
    if degrees:
        ax.set_xticks(ANGLE_TICKS)


def free_energy_map(
    surface: FreeEnergySurface,
    ax: Axes,
    *,
    error: bool = False,
    highest: float | None = None,
    title: str = "",
    labels: tuple[str, str] = ("φ (°)", "ψ (°)"),
) -> Any:
    """Draw the free energy over two angles, or half of the width of its band.

    Args:
        surface: over two angles in rad.
        ax: to draw on.
        error: whether to draw half of the interval's width; bins without an upper end stay white.
        highest: end of the colour scale in kJ/mol; default the largest finite value.
        title: of the axes.
        labels: of both axes.

    Returns:
        What a colour bar takes; label it by :func:`free_energy_label`.
    """
    values = 0.5 * (surface.upper - surface.lower) if error else surface.energy
    shown = np.ma.masked_invalid(values.T)
    x, y = (np.rad2deg(edge) for edge in surface.edges)
    colours = "cividis" if error else "viridis"
    image = ax.pcolormesh(x, y, shown, cmap=colours, vmin=0.0, vmax=highest, rasterized=True)
    ax.set(xlabel=labels[0], ylabel=labels[1], title=title, aspect="equal")
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_ticks(ANGLE_TICKS)
    ax.set(xlim=(-180, 180), ylim=(-180, 180))
    return image


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
    values, vertical_label, scale = described(prediction, name)
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


def described(prediction: Prediction, name: str) -> tuple[NDArray[np.float64], str, dict[str, Any]]:
    """Return values of an observable as drawn, its label with unit, and its colours."""
    observable = next(o for o in prediction.observables if o.name == name)
    values, unit, words = prediction.values[name], observable.unit, name.replace("_", " ")
    scale: dict[str, Any] = {"cmap": "viridis"}
    if observable.circular:
        values, unit = np.rad2deg(values), "°"
        words = words.replace("phi", "φ").replace("psi", "ψ")
        scale = {"cmap": "twilight", "vmin": -180.0, "vmax": 180.0}
    return values, f"{words} ({unit})" if unit else words, scale
