"""From options to objects: the system, its model, its training. The same options, the same bits."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from pyrocg.basins import Basins, find_basins
from pyrocg.cgmodel import CoarseGrainedModel
from pyrocg.conditions import seeded
from pyrocg.config import Config
from pyrocg.coordinates import (
    CartesianCoordinates,
    Coordinates,
    IdentityCoordinates,
    InternalCoordinates,
)
from pyrocg.decoders import GaussianDecoder
from pyrocg.encoders import GaussianEncoder
from pyrocg.energies.abstract import CappedEnergy, Energy
from pyrocg.energies.toy import DoubleWell
from pyrocg.geometry import standard_observables
from pyrocg.observables import Observable, double_well_observables
from pyrocg.priors import StandardNormalPrior
from pyrocg.sections import FitOptions, ModelOptions, ScheduleOptions, SystemOptions
from pyrocg.target import BoltzmannTarget
from pyrocg.tempering import (
    AdaptiveSchedule,
    FixedSchedule,
    GeometricSchedule,
    LinearSchedule,
    TemperingSchedule,
)

if TYPE_CHECKING:
    from pyrocg.molecules import Molecule

__all__ = [
    "KnownValues",
    "Speed",
    "System",
    "build_basins",
    "build_model",
    "build_optimizer",
    "build_schedule",
    "build_system",
    "engine_of",
    "measure_speed",
]


@dataclass(frozen=True)
class KnownValues:
    """What is known of a system from elsewhere.

    Attributes:
        method: where the values come from.
        observables: name to ``mean``, ``unit`` and, where known, ``standard_error``.
        log_z: in nats, if known.
        phi_psi: counts of (phi, psi) in equal bins from -pi to pi, if known.
    """

    method: str
    observables: dict[str, dict[str, Any]]
    log_z: float | None = None
    phi_psi: NDArray[np.float64] | None = None


@dataclass(frozen=True)
class System:
    """What is learned: a Boltzmann density in coordinates, and what to predict of it."""

    molecule: Molecule | None
    target: BoltzmannTarget
    coordinates: Coordinates
    observables: tuple[Observable, ...]
    reference: KnownValues | None


def build_system(config: Config) -> System:
    """Build the system that the options describe.

    Raises:
        ValueError: the options do not describe a molecule that can be learned.
        FileNotFoundError: a structure file is missing.
    """
    if config.system.kind == "double-well":
        assert config.system.tilt is not None
        well = DoubleWell(c=config.system.tilt)
        return System(
            molecule=None,
            target=BoltzmannTarget(well, beta=1.0),
            coordinates=IdentityCoordinates(2),
            observables=double_well_observables(),
            reference=_double_well_reference(well),
        )
    molecule = _molecule(config.system)
    kinds = {"internal": InternalCoordinates, "cartesian": CartesianCoordinates}
    return System(
        molecule=molecule,
        target=_target(molecule, config.system),
        coordinates=kinds[config.coordinates.kind](molecule),
        observables=standard_observables(molecule),
        reference=_shipped_reference(config.system),
    )


@dataclass(frozen=True)
class Speed:
    """How fast energies and forces are evaluated.

    Attributes:
        rate: configurations in a second.
        minutes: what the energies alone of a training will take.
    """

    rate: float
    minutes: float


def engine_of(system: System) -> dict[str, Any]:
    """Return the name of what computes the energies and why it was chosen, as plain values."""
    energy = system.target.energy.exact
    return {"name": type(energy).__name__, "reason": energy.engine_reason}


def measure_speed(config: Config, system: System) -> Speed:
    """Time energies and forces of up to five batches as large as in training.

    The batches are copies of the reference configuration and count in :attr:`Energy.calls`; calls
    that prepare others are left out of the time.
    """
    n = config.fit.num_samples
    with torch.no_grad():
        x, _ = system.coordinates(system.coordinates.origin.expand(n, -1))
    batch = x.detach().clone().requires_grad_()

    def evaluate() -> None:
        (gradient,) = torch.autograd.grad(system.target.energy(batch).sum(), batch)
        if gradient.is_cuda:
            torch.cuda.synchronize(gradient.device)

    for _ in range(4 if batch.is_cuda else 1):  # compiles, starts workers, captures a CUDA graph
        evaluate()
    started, done = time.perf_counter(), 0
    while done < 5 * n and (done == 0 or time.perf_counter() - started < 1.0):
        evaluate()
        done += n
    rate = done / (time.perf_counter() - started)
    return Speed(rate, config.fit.steps * n / rate / 60)


def build_basins(config: Config, system: System, progress: bool = False) -> Basins:
    """Find the basins that the model has a component for each of."""
    options = config.model
    given = _present(
        starts=options.starts,
        steps=options.basin_steps,
        separation=options.separation,
        max_free_energy=options.max_free_energy,
        max_energy=options.max_energy,
        max_basins=options.max_basins,
        concentration=options.concentration,
    )
    return find_basins(
        system.target,
        system.coordinates,
        cover=options.cover or None,
        seed=config.fit.seed,
        progress=progress,
        **given,
    )


def build_model(config: Config, system: System, basins: Basins | None) -> CoarseGrainedModel:
    """Build the untrained model; its random weights come from the seed of the training."""
    with seeded(config.fit.seed, []):
        if config.model.kind == "gaussian":
            return _gaussian_model(config.model, system)
        if config.model.kind == "paper":
            return _paper_model(config, system)
        return CoarseGrainedModel.from_basins(
            system.target,
            system.coordinates,
            basins,
            **_present(
                latent_dim=config.model.latent_dim,
                share=config.model.share,
                n_couplings=config.model.n_couplings,
                hidden=config.model.hidden,
                n_modes=config.model.n_modes,
            ),
        )


def build_schedule(options: ScheduleOptions) -> TemperingSchedule:
    """Build the tempering schedule."""
    kinds: dict[str, type[TemperingSchedule]] = {
        "fixed": FixedSchedule,
        "linear": LinearSchedule,
        "geometric": GeometricSchedule,
        "adaptive": AdaptiveSchedule,
        "relative": AdaptiveSchedule,
    }
    given = _present(**{key: value for key, value in vars(options).items() if key != "kind"})
    if options.kind == "relative":
        given |= {"max_kl_increase": None, "min_ess": None}
    return kinds[options.kind](**given)


def build_optimizer(
    options: FitOptions,
) -> Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer] | None:
    """Build what :func:`~pyrocg.training.fit` makes its optimiser with; None for its default."""
    if options.optimizer == "adam":
        return partial(torch.optim.Adam, lr=options.learning_rate)
    return None


def _present(**values: Any) -> dict[str, Any]:
    return {key: value for key, value in values.items() if value is not None}


def _paper_model(config: Config, system: System) -> CoarseGrainedModel:
    latent_dim, kind, circular = (
        config.model.latent_dim,
        config.system.kind,
        system.coordinates.circular,
    )
    return CoarseGrainedModel(
        system.target,
        system.coordinates,
        prior=StandardNormalPrior(latent_dim),
        decoder=GaussianDecoder.paper(circular, latent_dim, kind),
        encoder=GaussianEncoder.paper(circular, latent_dim, kind),
    )


def _gaussian_model(options: ModelOptions, system: System) -> CoarseGrainedModel:
    assert options.variance is not None
    assert options.hidden is not None
    circular = system.coordinates.circular
    decoder = GaussianDecoder(
        circular, options.latent_dim, options.hidden, variance=options.variance
    )
    encoder = GaussianEncoder(
        circular, options.latent_dim, options.hidden, variance=options.variance
    )
    prior = StandardNormalPrior(options.latent_dim)
    return CoarseGrainedModel(system.target, system.coordinates, prior, decoder, encoder)


def _molecule(options: SystemOptions) -> Molecule:
    from pyrocg.molecules import ALANINE_DIPEPTIDE_FORCEFIELDS, Molecule, alanine_dipeptide, peptide

    assert options.forcefield is not None
    given, named = options.forcefield, ALANINE_DIPEPTIDE_FORCEFIELDS
    if options.kind == "alanine-dipeptide" and len(given) == 1 and given[0] in named:
        return alanine_dipeptide(given[0])
    unknown = [f for f in given if f not in named and Path(f).suffix == "" and not Path(f).exists()]
    if unknown:
        raise ValueError(
            "system.forcefield: expected force-field files of OpenMM, such as amber14-all.xml, "
            f"paths to others, or one of {', '.join(named)}, got {unknown[0]!r}"
        )
    files = tuple(file for name in given for file in named.get(name, (name,)))
    if options.kind == "pdb":
        assert options.pdb is not None
        return Molecule.from_pdb(options.pdb, files)
    return peptide(options.peptide or "A", files)


def _target(molecule: Molecule, options: SystemOptions) -> BoltzmannTarget:
    """The Boltzmann density, capped if asked for: then one overlap does not spoil a whole batch."""
    target = BoltzmannTarget(_energy(molecule, options), options.temperature)
    if options.energy_cap in (None, math.inf):
        return target
    width = options.energy_cap / target.beta
    given = float(target.energy(torch.from_numpy(molecule.positions.copy())[None]))
    if not math.isfinite(given):
        raise ValueError(
            f"expected a structure with a finite energy, got {given}: atoms overlap; minimise it"
        )
    capped = CappedEnergy(target.energy, given + width, 0.1 * width)
    return BoltzmannTarget(capped, options.temperature)


def _energy(molecule: Molecule, options: SystemOptions) -> Energy:
    if options.engine == "openmm":
        from pyrocg.energies.openmm import OpenMMEnergy

        energy = OpenMMEnergy(molecule, options.platform, options.workers)
        energy.engine_reason = "asked for"
        return energy
    from pyrocg.energies.compiled import molecular_energy
    from pyrocg.energies.terms import UnsupportedForceError

    engine = options.engine or "auto"
    try:
        return molecular_energy(molecule, engine)
    except UnsupportedForceError as error:
        raise UnsupportedForceError(
            f"system.engine: {engine} does not cover this molecule: {error}; use --engine auto"
        ) from error


def _double_well_reference(well: DoubleWell) -> KnownValues:
    mean = well.mean()
    values = {
        "x1": float(mean[0]),
        "x2": float(mean[1]),
        "population_right": well.probability_above(),
    }
    return KnownValues(
        "quadrature",
        {name: {"mean": value, "unit": ""} for name, value in values.items()},
        well.log_z(),
    )


def _shipped_reference(options: SystemOptions) -> KnownValues | None:
    """Of alanine dipeptide with the force field and at the temperature of the shipped data."""
    at = options.temperature
    if options.kind != "alanine-dipeptide" or options.forcefield != ("amber96-obc",):
        return None
    if at is None or not math.isclose(at, 330.0):
        return None
    data = resources.files("pyrocg") / "data"
    values = json.loads((data / "ala2_amber96_obc_330K.json").read_text())
    with resources.as_file(data / "ala2_amber96_obc_330K.npz") as path:
        counts = _counts(path)
    return KnownValues(values["method"], values["observables"], phi_psi=counts)


def _counts(path: Path) -> NDArray[np.float64]:
    with np.load(path) as arrays:
        return arrays["counts"].astype(np.float64)
