"""Coarse-grained, generative models of molecules, learned from the force field alone.

The public names, in the order of the data flow. Each is loaded when first used, so that
``import pyrocg`` loads neither OpenMM nor Matplotlib.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_PUBLIC = {
    "molecules": ("Molecule", "alanine_dipeptide", "peptide"),
    "energies.abstract": ("CappedEnergy", "Energy"),
    "energies.openmm": ("OpenMMEnergy",),
    "energies.compiled": ("CompiledEnergy", "molecular_energy"),
    "energies.copies": ("CopiesEnergy",),
    "energies.toy": ("DoubleWell", "GaussianMixture", "Harmonic", "ManyWell", "MuellerBrown"),
    "target": ("BoltzmannTarget",),
    "coordinates": ("CartesianCoordinates", "IdentityCoordinates", "InternalCoordinates"),
    "basins": ("Basins", "find_basins"),
    "distributions": ("MixedNormal", "MoebiusNormal", "StratifiedCategorical", "WrappedNormal"),
    "priors": (
        "FlowPrior",
        "GaussianMixturePrior",
        "PriorProgram",
        "StandardNormalPrior",
        "StratifiedPrior",
        "TorusPrior",
    ),
    "decoders": ("CouplingDecoder", "GaussianDecoder"),
    "encoders": ("BasinPartition", "GaussianEncoder", "MixtureEncoder", "PartitionEncoder"),
    "cgmodel": ("CoarseGrainedModel", "Samples"),
    "tempering": ("AdaptiveSchedule", "FixedSchedule", "GeometricSchedule", "LinearSchedule"),
    "tempering_faults": ("TemperingFault", "find_tempering_faults"),
    "weight_priors": ("ARDWeightPrior", "GaussianWeightPrior", "count_switched_off"),
    "losses": ("WeightPriorELBO",),
    "objectives": ("AnalyticEntropyELBO", "ForwardKLELBO", "PathGradientELBO"),
    "training": ("fit",),
    "training_state": ("FitResult",),
    "weight_draws": ("WeightPosterior",),
    "laplace": ("LaplacePosterior",),
    "swag": ("SWAGPosterior",),
    "posterior": ("EnsemblePosterior", "load_posterior"),
    "langevin": ("TorsionBias", "repartitioned_masses", "temperature_ladder"),
    "reference": ("Reference", "replica_exchange"),
    "observables": ("Observable", "double_well_observables"),
    "geometry": ("standard_observables",),
    "analysis": ("free_energy", "kl_divergence", "total_variation"),
    "estimates": ("Estimate", "FreeEnergySurface", "Histogram"),
    "cautions": ("Caution",),
    "prediction": ("Prediction",),
    "predictive": ("PosteriorPrediction", "predict"),
    "bridges": ("Bridge", "find_bridge"),
    "annealing": ("Annealed", "anneal"),
    "scoring": ("score",),
    "comparison": ("Comparison", "compare"),
    "steering": ("BasinVariable", "LatentVariable", "openmm_force"),
    "run": ("Run", "load_run"),
}
_MODULE_OF = {name: module for module, names in _PUBLIC.items() for name in names}

__all__ = list(_MODULE_OF)


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'pyrocg' has no attribute {name!r}")
    return getattr(import_module(f"pyrocg.{_MODULE_OF[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
