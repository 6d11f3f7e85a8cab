"""Bridges: the densities between generator and target that samples are carried across."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from pyrocg.cgmodel import CoarseGrainedModel
from pyrocg.conditions import at_target, seeded
from pyrocg.frames import Scales
from pyrocg.tempering import conditional_ess
from pyrocg.transitions import ExtendedSpace, resample
from pyrocg.weights import ess

__all__ = ["Bridge", "check_counts", "check_fraction", "find_bridge"]

_MAX_LEVELS = 1000
_FIRST_ANGLE, _SMALLEST_ANGLE, _LARGEST_ANGLE = 0.5, 0.01, 1.5  # rad
_FIRST_TRIES, _TRIES = 5, 2  # pilot moves at the first and at each later level


@dataclass(frozen=True)
class Bridge:
    r"""The densities between generator and target, and how to move in each.

    .. math:: \log \rho_s = (1 - s) \log q(u, h) + s \log \pi(u, h)

    in the extended space of the reduced coordinates u and all latents h.

    Attributes:
        levels: :math:`0 < s_1 < \ldots < s_J = 1`.
        angles: size of the moves at each but the last, see
            :meth:`~pyrocg.transitions.ExtendedSpace.move_coordinates`; rad.
        leapfrog: steps of each move.
        scales: the frame of the moves.
        energy_calls: what finding them cost.

    Raises:
        ValueError: the levels do not rise to 1, there is no angle for each below 1, or fewer than
            one leapfrog step.
    """

    levels: tuple[float, ...]
    angles: tuple[float, ...]
    leapfrog: int
    scales: Scales = field(repr=False)
    energy_calls: int = 0

    def __post_init__(self) -> None:
        rising = all(a < b for a, b in zip((0.0, *self.levels), self.levels, strict=False))
        if not self.levels or not rising or self.levels[-1] != 1.0:
            raise ValueError(f"expected levels that rise from above 0 to 1, got {self.levels}")
        n = len(self.levels) - 1
        if len(self.angles) != n or not all(0 < a < math.pi for a in self.angles):
            raise ValueError(
                f"expected an angle in (0, pi) for each of {n} levels below 1, got {self.angles}"
            )
        if self.leapfrog < 1:
            raise ValueError(f"expected leapfrog of at least 1, got {self.leapfrog}")

    @property
    def calls_per_sample(self) -> int:
        """Energy calls that :func:`anneal` needs for each sample."""
        return 1 + self.leapfrog * len(self.angles)


def find_bridge(
    model: CoarseGrainedModel,
    *,
    min_ess: float = 0.98,
    leapfrog: int = 1,
    acceptance: float = 0.75,
    pilot: int = 1000,
    seed: int = 0,
) -> Bridge:
    r"""Choose levels and moves on a pilot run, so that the run that counts adapts nothing.

    The next level is the largest whose conditional ESS on the pilot's particles is at least
    ``min_ess``, by bisection; as the last step is shorter, all are then evened out. The size of the
    moves follows their acceptance. The pilot is resampled where its ESS falls below a half. Source:
    Zhou, Johansen and Aston (2016), "Toward automatic model comparison".

    Args:
        model: trained, see :func:`pyrocg.fit`.
        min_ess: conditional ESS of each step, a fraction; higher gives more levels.
        leapfrog: steps, and energy calls, of each move.
        acceptance: that the moves are tuned to.
        pilot: number of particles; their energy calls are counted.
        seed: of the random numbers; the global generators are left as they were.

    Raises:
        ValueError: an argument is out of range, no particle has a finite energy, or a thousand
            levels are not enough.

    Example:
        >>> import pyrocg
        >>> target = pyrocg.BoltzmannTarget(pyrocg.DoubleWell(), beta=1.0)
        >>> cg = pyrocg.CoarseGrainedModel.from_basins(
        ...     target, pyrocg.IdentityCoordinates(2), latent_dim=1, hidden=(8,)
        ... )
        >>> bridge = find_bridge(cg, pilot=500)
        >>> bridge.levels[-1], bridge.calls_per_sample == len(bridge.levels)
        (1.0, True)
    """
    check_fraction("min_ess", min_ess)
    check_fraction("acceptance", acceptance)
    check_counts(leapfrog=leapfrog, pilot=pilot)
    energy = model.target.energy.exact
    before = energy.calls
    with seeded(seed, model.parameters()), at_target(model):
        space = ExtendedSpace(model, Scales.of_generator(model))
        levels, angles = _Pilot(space, pilot, min_ess, leapfrog, acceptance).cross()
    return Bridge(levels, angles, leapfrog, space.scales, energy.calls - before)


class _Pilot:
    """Particles that cross while levels and moves are chosen on them."""

    def __init__(
        self, space: ExtendedSpace, n: int, min_ess: float, leapfrog: int, acceptance: float
    ) -> None:
        self.space, self.min_ess = space, min_ess
        self.leapfrog, self.acceptance, self.angle = leapfrog, acceptance, _FIRST_ANGLE
        self.particles = space.draw(n)
        self.log_w = torch.zeros(n, dtype=torch.float64, device=self.particles.u.device)

    def cross(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Levels and angles."""
        levels, angles, last = [0.0], [_FIRST_ANGLE], 0.0
        while True:
            increment = self.particles.log_weight
            step, last = _largest_step(increment, self.log_w, 1.0 - levels[-1], self.min_ess)
            if step >= 1.0 - levels[-1]:
                return _evened(levels, angles, last)
            if len(levels) == _MAX_LEVELS:
                raise ValueError(
                    f"expected at most {_MAX_LEVELS} levels, got to s = {levels[-1]:.3g} with "
                    "them; train the model further, or lower min_ess"
                )
            levels.append(levels[-1] + step)
            self._reweigh(step * increment)
            self._move(levels[-1], _TRIES if len(levels) > 2 else _FIRST_TRIES)
            angles.append(self.angle)

    def _reweigh(self, increment: Tensor) -> None:
        self.log_w = self.log_w + increment
        if ess(self.log_w) < 0.5:
            self.particles, self.log_w, _ = resample(self.particles, self.log_w)

    def _move(self, s: float, tries: int) -> None:
        for _ in range(tries):
            particles, _ = self.space.move_latents(self.particles, s)
            self.particles, accepted = self.space.move_coordinates(
                particles, s, self.angle, self.leapfrog
            )
            angle = self.angle * math.exp(float(accepted.mean()) - self.acceptance)
            self.angle = min(max(angle, _SMALLEST_ANGLE), _LARGEST_ANGLE)


def _evened(
    levels: list[float], angles: list[float], last: float
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Levels 0 to 1 in as many steps, the last of which was only a fraction of the others."""
    n = len(levels)
    if n == 1:
        return (1.0,), ()
    numbers = np.append(np.arange(n), n - 1 + last)
    even = np.interp(np.linspace(0.0, numbers[-1], n + 1)[1:-1], numbers, [*levels, 1.0])
    return (*even.tolist(), 1.0), tuple(np.interp(even, levels[1:], angles[1:]).tolist())


def _largest_step(
    increment: Tensor, log_w: Tensor, longest: float, min_ess: float
) -> tuple[float, float]:
    """The longest step whose conditional ESS, of what has weight at all, is large enough.

    And which fraction of such a step the longest possible one is, at most 1.
    """
    known = increment.isfinite() & log_w.isfinite()
    if not bool(known.any()):
        raise ValueError(
            f"expected particles with finite energies, got none of {len(log_w)}; train the model "
            "first"
        )
    energy, log_w = -increment[known], log_w[known]
    fraction = float(conditional_ess(energy, log_w, longest))
    if fraction >= min_ess:  # 1 / ESS - 1 grows with the square of a step
        return longest, math.sqrt(max(0.0, 1 / fraction - 1) / (1 / min_ess - 1))
    low, high = 0.0, longest
    for _ in range(50):
        middle = 0.5 * (low + high)
        enough = conditional_ess(energy, log_w, middle) >= min_ess
        low, high = (middle, high) if enough else (low, middle)
    return high, 1.0


def check_fraction(name: str, value: float) -> None:
    """Raise ValueError, with the name, for a value that is not between 0 and 1."""
    if not 0 < value < 1:
        raise ValueError(f"expected {name} between 0 and 1, got {value}")


def check_counts(**counts: int) -> None:
    """Raise ValueError, with its name, for a count below 1."""
    for name, value in counts.items():
        if value < 1:
            raise ValueError(f"expected {name} of at least 1, got {value}")
