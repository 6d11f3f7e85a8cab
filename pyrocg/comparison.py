"""A trained model beside a reference: bounds of log Z from both sides, averages, surfaces."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm.auto import tqdm

from pyrocg.averages import Average, average
from pyrocg.cgmodel import CoarseGrainedModel
from pyrocg.conditions import at_target, seeded
from pyrocg.evidence import ReferenceEvidence, model_evidence, share_of
from pyrocg.observables import Observable
from pyrocg.reference import Reference
from pyrocg.scoring import score
from pyrocg.surfaces import SurfaceDistance, surface_distance

__all__ = ["ComparedAverage", "Comparison", "compare"]

Array: TypeAlias = NDArray[np.float64]

_LOST = 5e-4  # share of the reference


@dataclass(frozen=True)
class ComparedAverage:
    r"""One observable of model and reference.

    Attributes:
        name: of the observable.
        unit: of the values.
        reference: the reference's average.
        corrected: the model's, by importance weights, and its standard error.
        plain: the model's own, and its standard error.
        bridged: of a population A, that of :math:`Z_A = q(A) / E_{\pi|A}[1/w]` and of the same for
            the rest, with q(A) of the model alone. It takes from the reference only how it looks
            inside of A and inside of the rest, not how often they exchange, and it is not blind to
            what the model misses. None for other observables, or if A was not seen.
        z_score: corrected minus reference, over their combined standard error.
    """

    name: str
    unit: str
    reference: Average
    corrected: tuple[float, float]
    plain: tuple[float, float]
    bridged: tuple[float, float] | None
    z_score: float


@dataclass(frozen=True)
class Comparison:
    r"""What :func:`compare` returns. Errors are standard errors; w is the importance weight.

    Attributes:
        eubo: evidence upper bound, :math:`E_\pi[\log w] \ge \log Z`, over the reference.
        eubo_error: from the spread between ladders.
        elbo: evidence lower bound, at most log Z, over the model's samples with finite weights.
        elbo_error: its error.
        log_z: by importance sampling, :math:`\log E_q[w]`.
        log_z_error: its error; too small where the model misses a mode.
        reference_log_z: from the reference, :math:`-\log E_\pi[1/w]`.
        reference_log_z_error: its error.
        ess: effective sample size of the model's samples, a fraction.
        forward_ess: the same from the reference, :math:`1 / (E_\pi[w] E_\pi[1/w])`: it sees modes
            that the model misses.
        n_samples: samples of the model.
        n_reference: configurations of the reference that were scored.
        left_out: share of the reference that ``inside`` left out.
        unsupported: share of the rest that the model cannot have: no reduced coordinates, such as
            inverted centres, or density 0.
        undersampled: share of what the model can have where it has less than 1 % of the density.
        averages: the observables.
        surface: distances of the importance-corrected histogram.
        plain_surface: those of the model's own.
        warnings: what disagrees, in words.
    """

    eubo: float
    eubo_error: float
    elbo: float
    elbo_error: float
    log_z: float
    log_z_error: float
    reference_log_z: float
    reference_log_z_error: float
    ess: float
    forward_ess: float
    n_samples: int
    n_reference: int
    left_out: float
    unsupported: float
    undersampled: float
    averages: tuple[ComparedAverage, ...]
    surface: SurfaceDistance | None
    plain_surface: SurfaceDistance | None
    warnings: tuple[str, ...]


def compare(
    model: CoarseGrainedModel,
    reference: Reference,
    observables: Sequence[Observable] = (),
    surface: tuple[Observable, Observable] | None = None,
    *,
    inside: Callable[[Any], Any] | None = None,
    num_samples: int = 100_000,
    num_reference: int = 20_000,
    bins: int = 50,
    batch: int = 5000,
    seed: int = 0,
    progress: bool = True,
) -> Comparison:
    r"""Compare a trained model with a reference of the same density.

    Reference configurations x get reduced coordinates u, latents :math:`z \sim r(z|u)`, and the
    extended-space weight :math:`w = e^{-\beta U} |\partial T/\partial u|\, r / (p\, q)`. Its mean
    logarithm is the evidence upper bound (EUBO), so that EUBO >= log Z >= ELBO; EUBO - log Z and
    log Z - ELBO are the forward and the reverse KL divergence of model and target. Source: Ji and
    Shen (2019), "Stochastic variational inference via upper bound"; Blessing, Jia, Esslinger,
    Vargas and Neumann (2024), "Beyond ELBOs".

    Args:
        model: trained; evaluated at t = 1 with the uncapped energy.
        reference: see :func:`~pyrocg.reference.replica_exchange`.
        observables: whose averages are compared.
        surface: two observables, such as phi and psi, whose histograms are compared.
        inside: from configurations ``(n, *event_shape)`` to bool ``(n,)``, the part of the
            reference to compare with, if the model leaves some out on purpose, such as cis peptide
            bonds.
        num_samples: samples of the model.
        num_reference: at most so many configurations are scored, of evenly spaced records.
        bins: of each observable in the histograms.
        batch: configurations at a time.
        seed: of the random numbers; the global generators are left as they were.
        progress: show a progress bar.

    Raises:
        ValueError: the reference has another temperature, or nothing of it is inside and supported.
    """
    beta = model.target.beta
    if not math.isclose(beta, reference.beta, rel_tol=1e-6):
        raise ValueError(
            f"expected a reference at the model's beta of {beta:g} mol/kJ, got {reference.beta:g}"
        )
    kept = _kept(reference, inside)
    some = np.s_[:, :: math.ceil(reference.energies.size / num_reference)]
    with (
        seeded(seed, model.parameters()),
        at_target(model),
        tqdm(disable=not progress, unit="configuration") as bar,
    ):
        drawn, log_w = _draw(model, num_samples, batch, bar)
        scored = _scored(model, reference.positions[some], kept[some], batch, bar)
    forward = ReferenceEvidence.of(scored, reference.log_weights[some], kept[some])
    with np.errstate(divide="ignore"):
        restricted = reference.log_weights + np.log(kept)
    weights = torch.softmax(log_w, 0).numpy()
    equal = np.full(len(weights), 1.0 / len(weights))
    rows = []
    for o in observables:
        known, values = reference.evaluate(o), o(drawn)
        row = _averages(o, known, restricted, values, weights, equal)
        rows.append(replace(row, bridged=forward.bridged(known[some], row.plain)))
    surfaces: list[SurfaceDistance | None] = [None, None]
    if surface is not None:
        own, found = [reference.evaluate(o) for o in surface], [o(drawn) for o in surface]
        edges = [_edges(*part, bins) for part in zip(surface, own, found, strict=True)]
        surfaces = [
            surface_distance(own, restricted, found, w, edges, seed) for w in (weights, equal)
        ]
    outside = 0.0 if inside is None else 1.0 - float(np.mean(inside(drawn)))
    left_out = 1.0 - share_of(kept, reference.log_weights, np.ones_like(kept))
    return Comparison(
        **model_evidence(log_w),
        **forward.summary(),
        left_out=left_out,
        averages=tuple(rows),
        surface=surfaces[0],
        plain_surface=surfaces[1],
        warnings=_warnings(left_out, outside, forward, rows),
    )


def _draw(
    model: CoarseGrainedModel, n: int, batch: int, bar: tqdm
) -> tuple[NDArray[np.floating[Any]], Tensor]:
    """Configurations of the model and their log weights, -inf where not finite."""
    x, log_w = [], []
    for first in range(0, n, batch):
        samples = model.sample(min(batch, n - first)).to("cpu")
        x.append(samples.x)
        log_w.append(samples.log_weights.double())
        bar.update(len(samples.x))
    joined = torch.cat(log_w)
    return torch.cat(x).numpy(), torch.where(torch.isfinite(joined), joined, -math.inf)


def _kept(reference: Reference, inside: Callable[[Any], Any] | None) -> NDArray[np.bool_]:
    """Which records are compared with, shape (n_ladders, n_records)."""
    if inside is None:
        return np.ones(reference.energies.shape, dtype=bool)
    flat = reference.positions.reshape(-1, *reference.positions.shape[2:])
    return np.asarray(inside(flat), dtype=bool).reshape(reference.energies.shape)


def _scored(
    model: CoarseGrainedModel,
    positions: NDArray[np.floating[Any]],
    kept: NDArray[np.bool_],
    batch: int,
    bar: tqdm,
) -> Array:
    """Log weights of kept records, NaN elsewhere, shape (n_ladders, n_records)."""
    device = model.model.origin.device
    log_w = np.full(kept.shape, math.nan)
    chosen = torch.from_numpy(positions[kept])
    parts = []
    for x in chosen.split(batch):
        parts.append(score(model, x.to(device)).cpu())
        bar.update(len(x))
    if parts:
        log_w[kept] = torch.cat(parts).numpy()
    return log_w


def _averages(
    observable: Observable,
    reference_values: Array,
    log_weights: Array,
    values: Array,
    weights: Array,
    equal: Array,
) -> ComparedAverage:
    known = average(
        reference_values,
        log_weights,
        name=observable.name,
        unit=observable.unit,
        circular=observable.circular,
    )
    corrected, plain = (_mean(values, w, observable.circular) for w in (weights, equal))
    difference = corrected[0] - known.mean
    if observable.circular:
        difference = math.remainder(difference, 2 * math.pi)
    error = math.hypot(corrected[1], known.standard_error)
    z_score = difference / error if error > 0 else math.copysign(math.inf, difference)
    return ComparedAverage(
        observable.name,
        observable.unit,
        known,
        corrected,
        plain,
        None,
        0.0 if difference == 0 else z_score,
    )


def _mean(values: Array, w: Array, circular: bool) -> tuple[float, float]:
    """Weighted mean and its standard error; w sums to 1."""
    if circular:
        c, s = float((w * np.cos(values)).sum()), float((w * np.sin(values)).sum())
        mean = math.atan2(s, c)
        departure = np.sin(values - mean) / max(math.hypot(c, s), 1e-12)
    else:
        mean = float((w * values).sum())
        departure = values - mean
    return mean, float(np.sqrt(((w * departure) ** 2).sum()))


def _edges(observable: Observable, own: Array, found: Array, bins: int) -> Array:
    if observable.circular:
        return np.linspace(-math.pi, math.pi, bins + 1)
    low, high = min(own.min(), found.min()), max(own.max(), found.max())
    return np.linspace(low, high, bins + 1)


def _warnings(
    left_out: float, outside: float, forward: ReferenceEvidence, rows: Sequence[ComparedAverage]
) -> tuple[str, ...]:
    found = []
    if left_out > 0:
        found.append(f"{100 * left_out:.3g} % of the reference was left out, as asked")
    if outside > _LOST:
        found.append(
            f"{100 * outside:.3g} % of the model's samples are not inside: what it says is not of "
            "the same set as the reference; leave out only what the model leaves out"
        )
    if forward.unsupported > 0:
        found.append(
            f"the model cannot have {100 * forward.unsupported:.3g} % of the reference "
            "(no reduced coordinates, or density 0); it is left out of the bounds"
        )
    if forward.undersampled > _LOST:
        found.append(
            f"the model has less than 1 % of the density of {100 * forward.undersampled:.3g} % "
            "of the reference: a lost mode; look for its basin, or leave it out with inside"
        )
    found += [
        f"{row.name} differs from the reference by {row.z_score:+.1f} standard errors"
        for row in rows
        if abs(row.z_score) > 3
    ]
    found += [warning for row in rows for warning in row.reference.warnings]
    return tuple(found)
