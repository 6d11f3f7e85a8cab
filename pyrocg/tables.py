"""The tables that a run ends with, as text."""

from __future__ import annotations

import math
from typing import Any

from pyrocg.system import KnownValues

__all__ = ["prediction_table", "training_line"]


def training_line(done: dict[str, Any]) -> str:
    """Return how a training ended.

    Args:
        done: what :meth:`~pyrocg.runfolder.RunFolder.history` reads.
    """
    calls = sum(done["energy_calls"].values())
    return (
        f"{done['stopped']} after {done['steps']} steps, {done['seconds']:.0f} s, "
        f"{calls:,} energy calls, {done['skipped']} steps left out"
    )


def prediction_table(summary: dict[str, Any], reference: KnownValues | None, seconds: float) -> str:
    """Return the results beside what is known from elsewhere.

    Args:
        summary: what :meth:`~pyrocg.runfolder.RunFolder.prediction_summary` reads.
        reference: known values.
        seconds: wall time to state.
    """
    observables = summary["observables"]
    level = f"{100 * next(iter(observables.values()))['level']:g} %" if observables else ""
    how = "importance-corrected" if summary["corrected"] else "the model's own"
    known = reference.observables if reference else {}
    lines = [
        *_scalars(summary, level, reference.log_z if reference else None, seconds),
        "",
        f"{how:<24}{'mean':>10}   {level + ' interval':<24}{'reference' if known else ''}".rstrip(),
        *(_row(name, found, known.get(name)) for name, found in observables.items()),
        "",
        f"{'standard deviation from':<24}{'posterior':>12}{'Monte Carlo':>14}{'weights':>12}",
        *(_parts(name, found) for name, found in observables.items()),
    ]
    return "\n".join(lines)


def _scalars(
    summary: dict[str, Any], level: str, known_log_z: float | None, seconds: float
) -> list[str]:
    calls = summary["energy_calls_split"]
    split = ", ".join(f"{name} {count:,}" for name, count in calls.items())
    low, high = summary["log_z_interval"]
    k_hat = summary["pareto_k"]
    known = "" if known_log_z is None else f" (reference {known_log_z:.4f})"
    rows = {
        "log Z": f"{summary['log_z']:.4f}, {level} interval {low:.4f} to {high:.4f}{known}",
        "ELBO": f"{summary['elbo']:.4f}",
        "ESS": f"{100 * summary['ess']:.1f} % of {summary['num_samples']:,} samples",
        "Pareto k-hat": "not finite" if k_hat is None else f"{k_hat:.2f}",
        "energy calls": f"{summary['energy_calls']:,} ({split})",
        "wall time": f"{seconds:.1f} s",
        "posterior": _posterior(summary["posterior"]),
    }
    if "ramachandran_tv" in summary:
        rows["phi/psi"] = f"total variation {summary['ramachandran_tv']:.4f} from the reference"
    return [f"{name:<14}{value}" for name, value in rows.items()]


def _posterior(made: dict[str, Any]) -> str:
    if made["method"] == "none":
        return "none, of the trained weights alone"
    scale = made["gibbs_scale"]
    how = {"laplace": "Laplace", "swag": "SWAG"}[made["method"]]
    width = "" if scale is None else f", Gibbs scale N = {scale:,.0f}"
    return f"{how}, {made['weight_draws']} draws of the weights{width}"


def _shown(name: str, unit: str) -> tuple[str, float, int]:
    """Label, scale and digits of an observable; angles are in degrees."""
    if unit == "rad":
        return f"{name} (deg)", 180.0 / math.pi, 1
    return f"{name} ({unit})" if unit else name, 1.0, 5


def _parts(name: str, found: dict[str, Any]) -> str:
    label, scale, digits = _shown(name, found["unit"])
    posterior, monte_carlo, weights = (
        f"{found[part] * scale:.{digits + 1}f}" for part in ("posterior", "monte_carlo", "weights")
    )
    return f"{label:<24}{posterior:>12}{monte_carlo:>14}{weights:>12}"


def _row(name: str, found: dict[str, Any], known: dict[str, Any] | None) -> str:
    label, scale, digits = _shown(name, found["unit"])
    mean, (low, high) = found["mean"] * scale, (edge * scale for edge in found["interval"])
    interval = f"{low:.{digits}f} to {high:.{digits}f}"
    line = f"{label:<24}{mean:>10.{digits}f}   {interval:<24}"
    if known is None:
        return line.rstrip()
    error = f" ± {known['standard_error']:.{digits}f}" if "standard_error" in known else ""
    value = round(known["mean"] * scale, digits) + 0.0  # no -0
    return f"{line}{value:.{digits}f}{error}"
