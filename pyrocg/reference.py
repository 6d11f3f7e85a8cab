"""Equilibrium averages without a model: replica-exchange Langevin dynamics, to validate against."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from pyrocg.averages import Average, average
from pyrocg.checkpoint import write_atomically
from pyrocg.langevin import Baoab, Bias
from pyrocg.observables import Observable
from pyrocg.simulation import Simulation, broadcast_masses, check_settings, check_start
from pyrocg.target import BoltzmannTarget

__all__ = ["Reference", "replica_exchange"]

_LOW_ACCEPTANCE = 0.1
_FEW_ROUND_TRIPS = 100


@dataclass(frozen=True)
class Reference:
    r"""Configurations of the Boltzmann density from independent simulations, the ladders.

    Attributes:
        positions: recorded at the target's temperature, shape
            ``(n_ladders, n_records, *event_shape)``, nm for molecules.
        energies: U of these, in kJ/mol, without the bias, shape ``(n_ladders, n_records)``.
        log_weights: of these, :math:`\beta V` with the bias potential V; 0 without a bias.
        beta: of the target, mol/kJ.
        ladder: temperatures relative to the target's.
        acceptance: fraction of accepted exchanges between rungs k and k + 1, shape
            ``(n_rungs - 1,)``.
        round_trips: how often a replica went from the first rung to the last and back, in each
            ladder, shape ``(n_ladders,)``.
        energy_calls: configurations whose energy and force were evaluated.
        seconds: wall time, over all resumed runs.
        settings: the arguments of :func:`replica_exchange`, as plain values.
    """

    positions: NDArray[np.floating[Any]] = field(repr=False)
    energies: NDArray[np.floating[Any]] = field(repr=False)
    log_weights: NDArray[np.float64] = field(repr=False)
    beta: float
    ladder: tuple[float, ...]
    acceptance: NDArray[np.float64]
    round_trips: NDArray[np.int64]
    energy_calls: int
    seconds: float
    settings: dict[str, Any]

    def estimate(self, observable: Observable, level: float = 0.95) -> Average:
        """Return an equilibrium average with its error bar, see :func:`~pyrocg.averages.average`.

        Args:
            observable: function of configurations.
            level: probability that the interval holds.
        """
        return average(
            self.evaluate(observable),
            self.log_weights,
            name=observable.name,
            unit=observable.unit,
            circular=observable.circular,
            level=level,
        )

    def evaluate(self, observable: Observable) -> NDArray[np.float64]:
        """Return an observable's values, shape ``(n_ladders, n_records)``."""
        shape = self.energies.shape
        return observable(self.positions.reshape(-1, *self.positions.shape[2:])).reshape(shape)

    def draw(self, n: int, seed: int = 0) -> NDArray[np.floating[Any]]:
        """Draw configurations ``(n, *event_shape)`` of equal weight, without the bias.

        By systematic resampling over all ladders and records, so that without a bias and with n
        below the number of records none occurs twice.
        """
        w = np.exp(self.log_weights - self.log_weights.max()).ravel()
        first = np.random.default_rng(seed).random()
        cumulative = np.cumsum(w / w.sum())
        index = np.searchsorted(cumulative, (first + np.arange(n)) / n).clip(max=len(w) - 1)
        return self.positions.reshape(-1, *self.positions.shape[2:])[index]

    @cached_property
    def mean_energy(self) -> Average:
        """Average of U, kJ/mol."""
        return average(self.energies, self.log_weights, name="energy", unit="kJ/mol")

    @property
    def warnings(self) -> tuple[str, ...]:
        """When not to trust this, in words. Those of an observable are in its average."""
        found = [
            f"only {100 * rate:.0f} % of the exchanges between rungs {k} and {k + 1} were "
            "accepted: put the temperatures closer together"
            for k, rate in enumerate(self.acceptance)
            if rate < _LOW_ACCEPTANCE
        ]
        if len(self.ladder) > 1 and self.round_trips.sum() < _FEW_ROUND_TRIPS:
            found.append(
                f"only {self.round_trips.sum()} round trips between the first and the last "
                "temperature: run longer"
            )
        return (*found, *self.mean_energy.warnings)

    def save(self, path: str | Path) -> None:
        """Write everything to one ``.npz`` file, atomically."""
        arrays = {k: v for k, v in vars(self).items() if isinstance(v, np.ndarray)}
        plain = {
            k: v for k, v in vars(self).items() if k not in arrays and not isinstance(v, Average)
        }
        write_atomically(
            path, lambda file: np.savez_compressed(file, plain=json.dumps(plain), **arrays)
        )

    @classmethod
    def load(cls, path: str | Path) -> Reference:
        """Read what :meth:`save` wrote; nothing is unpickled.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: the file is not a saved reference.
        """
        try:
            with np.load(path, allow_pickle=False) as file:
                arrays = {name: file[name] for name in file.files}
            plain = json.loads(str(arrays.pop("plain")))
            return cls(**arrays, **{**plain, "ladder": tuple(plain["ladder"])})
        except (KeyError, TypeError, ValueError, AttributeError, zipfile.BadZipFile) as error:
            raise ValueError(
                f"expected a saved reference at {path}, cannot read it: {error}"
            ) from error


def replica_exchange(
    target: BoltzmannTarget,
    start: Tensor,
    n_steps: int,
    *,
    masses: ArrayLike = 1.0,
    time_step: float = 0.001,
    friction: float = 2.0,
    ladder: Sequence[float] = (1.0,),
    n_ladders: int = 64,
    exchange_every: int = 100,
    record_every: int = 100,
    equilibration: int | None = None,
    bias: Bias | None = None,
    seed: int = 0,
    checkpoint: str | Path | None = None,
    checkpoint_seconds: float = 300.0,
    progress: bool = True,
) -> Reference:
    r"""Sample a Boltzmann density by replica-exchange Langevin dynamics.

    Independent ladders of replicas, one replica at each temperature, are advanced together by
    :class:`~pyrocg.langevin.Baoab`, one energy call per replica and step, and replicas at
    neighbouring temperatures are exchanged (:func:`~pyrocg.langevin.exchange`), even and odd pairs
    in turn. The ladders are independent, so the spread between them is the error bar. With the
    ladder ``(1.0,)`` this is plain Langevin dynamics.

    With a bias potential V all replicas move in U + V, and the records get the weights
    :math:`e^{\beta V}` (umbrella sampling, Torrie and Valleau 1977): a rare basin that V favours is
    measured with a small error.

    The exact distribution is that of vanishing time step; compare two time steps. With
    ``checkpoint`` the whole state is written atomically at intervals and at the end; if the file
    exists the run continues from it, to the same numbers as one that was never stopped. A larger
    ``n_steps`` extends a finished run, given the same ``equilibration``.

    Args:
        target: the density; its uncapped energy is used.
        start: positions to start from, shape ``(n_starts, *event_shape)``; ladder l starts from
            ``start[l % n_starts]``. Their dtype and device are those of the run. Minima from
            :func:`~pyrocg.basins.find_basins` are ``coordinates(basins.u)[0]``.
        n_steps: number of time steps.
        masses: in amu, shape ``()`` or that of one configuration without its last dimension,
            ``(n_atoms,)`` or ``()``: ``molecule.masses``, or
            :func:`~pyrocg.langevin.repartitioned_masses`, with which time steps of 0.002 to 0.003
            ps are stable.
        time_step: ps for molecules; in toy units, :math:`\sqrt{m/k}` of the stiffest well k, at
            most about 1.
        friction: :math:`\gamma`, the inverse of a time.
        ladder: temperatures relative to the target's, rising from 1; see
            :func:`~pyrocg.langevin.temperature_ladder`.
        n_ladders: number of independent ladders, two or more.
        exchange_every: steps between two attempts to exchange.
        record_every: steps between two recorded configurations.
        equilibration: first steps that are not recorded; default a fifth of ``n_steps``.
        bias: V, from configurations ``(n, *event_shape)`` to kJ/mol ``(n,)``, differentiable.
        seed: of the random numbers; no global generator is used.
        checkpoint: file to write to, and to resume from if it exists.
        checkpoint_seconds: shortest time between two writes.
        progress: show a progress bar.

    Raises:
        ValueError: an argument is out of range, or other than in the checkpoint to resume from.
        FileNotFoundError: the checkpoint's folder does not exist.
        FloatingPointError: an energy is no longer finite: the time step is too long.

    Example:
        >>> import torch
        >>> from pyrocg.energies.toy import DoubleWell
        >>> from pyrocg.observables import coordinate
        >>> target = BoltzmannTarget(DoubleWell(), beta=1.0)
        >>> reference = replica_exchange(
        ...     target, torch.zeros(1, 2), 2000, time_step=0.2, friction=1.0,
        ...     ladder=(1.0, 2.0, 4.0), n_ladders=32, exchange_every=5, record_every=5,
        ...     progress=False,
        ... )
        >>> average = reference.estimate(coordinate(0))
        >>> abs(average.mean + 2.441) < 4 * average.standard_error
        True
    """
    x = torch.as_tensor(start).detach()
    settings = {
        "n_steps": n_steps,
        "time_step": time_step,
        "friction": friction,
        "ladder": [float(t) for t in ladder],
        "n_ladders": n_ladders,
        "exchange_every": exchange_every,
        "record_every": record_every,
        "equilibration": n_steps // 5 if equilibration is None else equilibration,
        "bias": None if bias is None else _name(bias),
        "seed": seed,
        "beta": target.beta,
        "dtype": str(x.dtype),
        "masses": np.asarray(masses, dtype=np.float64).tolist(),
    }
    check_settings(settings)
    check_start(x, target.event_shape)
    if checkpoint is not None and not Path(checkpoint).parent.is_dir():
        raise FileNotFoundError(f"expected the folder of {checkpoint} to exist; make it first")
    kt = torch.tensor(settings["ladder"], device=x.device, dtype=torch.float64) / target.beta
    dynamics = Baoab(
        target.energy.exact,
        kt,
        broadcast_masses(masses, x, target.event_shape),
        time_step,
        friction,
        bias,
    )
    file = None if checkpoint is None else Path(checkpoint)
    run = Simulation(dynamics, settings, file, checkpoint_seconds, progress)
    run.start(x)
    run.finish()
    return _result(run)


def _name(bias: Bias) -> str:
    """What tells a bias from another in a new process too."""
    named = getattr(bias, "__qualname__", repr(bias))
    return type(bias).__qualname__ if " at 0x" in named else named


def _result(run: Simulation) -> Reference:
    """Collect what the user gets."""
    x, energy, bias = (torch.stack(run.records[k], 1).cpu() for k in run.records)
    accepted, attempts = run.accepted.double().cpu()
    return Reference(
        positions=x.numpy(),
        energies=energy.numpy(),
        log_weights=run.settings["beta"] * bias.double().numpy(),
        beta=run.settings["beta"],
        ladder=tuple(run.settings["ladder"]),
        acceptance=(accepted / attempts.clamp(min=1)).numpy(),
        round_trips=run.round_trips.cpu().numpy(),
        energy_calls=run.counters.energy_calls,
        seconds=run.counters.seconds,
        settings=run.settings,
    )
