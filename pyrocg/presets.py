"""The defaults of a run: what is tuned for each system, and what applies to each kind."""

from __future__ import annotations

from typing import Any

__all__ = ["FIRST_KIND", "KINDS", "PRESETS"]

# What to tune. Preset of each system: section -> kind ("" where there are none) -> values.
_MOLECULE: dict[str, dict[str, dict[str, Any]]] = {
    "model": {"basins": {"latent_dim": 2, "n_couplings": 6, "hidden": (128, 128)}},
    "fit": {"": {"steps": 6000, "num_samples": 252, "learning_rate": 5e-3}},
}
PRESETS: dict[str, dict[str, dict[str, dict[str, Any]]]] = {
    "double-well": {
        "model": {
            "basins": {"latent_dim": 1, "n_couplings": 4, "hidden": (64, 64)},
            "gaussian": {"latent_dim": 1, "hidden": (100, 100)},
            "paper": {"latent_dim": 1},
        },
        "fit": {"": {"steps": 600, "num_samples": 256, "learning_rate": 3e-3}},
    },
    "alanine-dipeptide": _MOLECULE,
    "pdb": _MOLECULE,
    "peptide": _MOLECULE,
}

# What applies to each kind, with its default.
_ENGINE = {"engine": "auto", "platform": None, "workers": None}
_DEFAULT_FORCEFIELD = ("amber14-all.xml", "implicit/obc2.xml")
KINDS: dict[str, dict[str, dict[str, Any]]] = {
    "system": {
        "double-well": {"tilt": 1.0},
        "alanine-dipeptide": {"forcefield": ("amber96-obc",), "temperature": 330.0, **_ENGINE},
        "pdb": {
            "pdb": None,
            "forcefield": _DEFAULT_FORCEFIELD,
            "temperature": 300.0,
            **_ENGINE,
            "energy_cap": 1000.0,
        },
        "peptide": {
            "peptide": None,
            "forcefield": _DEFAULT_FORCEFIELD,
            "temperature": 300.0,
            **_ENGINE,
            "energy_cap": 1000.0,
        },
    },
    "coordinates": {"identity": {}, "internal": {}, "cartesian": {}},
    "model": {
        "basins": {
            "latent_dim": 2,
            "starts": 128,
            "share": 0.3,
            "basin_steps": 200,
            "separation": 0.5,
            "max_free_energy": 12.0,
            "cover": 0.9,
            "max_energy": 9.0,
            "max_basins": 256,
            "concentration": 12.0,
            "n_couplings": 6,
            "hidden": (128, 128),
            "n_modes": 4,
        },
        "gaussian": {"latent_dim": 2, "hidden": (100, 100, 100), "variance": "network"},
        "paper": {"latent_dim": 2},
    },
    "schedule": {
        "fixed": {},
        "linear": {"start": 0.1, "until": 0.5},
        "geometric": {"start": 0.01, "until": 0.5},
        "adaptive": {
            "start": 0.01,
            "until": 0.8,
            "max_kl_increase": 0.1,
            "min_ess": 0.5,
            "max_step": 0.1,
            "min_step": 1e-4,
            "shrink": 0.6,
        },
        "relative": {
            "start": 1e-4,
            "until": 0.8,
            "max_relative_increase": 1.0,
            "max_step": 1e-3,
            "min_step": 1e-6,
            "shrink": 0.6,
        },
    },
    "fit": {
        "": {
            "steps": 5000,
            "num_samples": 256,
            "optimizer": "soap",
            "learning_rate": 1e-3,
            "clip_norm": 2.0,
            "warmup": 0.02,
            "evaluate_every": 100,
            "evaluate_samples": 1024,
            "patience": None,
            "seed": 0,
            "compile": False,
            "checkpoint_seconds": 30.0,
        }
    },
    "predict": {
        "": {
            "num_samples": 100_000,
            "encoder_draws": 4,
            "level": 0.95,
            "n_draws": 500,
            "batch": 5000,
            "seed": 0,
            "state": "last",
        }
    },
    "posterior": {
        "none": {},
        "laplace": {"weight_draws": 20, "structure": "low_rank", "num_samples": 1000},
        "swag": {"weight_draws": 20, "steps": 1000, "learning_rate": 1e-3},
    },
    "run": {"": {"threads": None, "device": "cpu", "save_samples": False}},
}
FIRST_KIND = {
    "coordinates": "internal",
    "model": "basins",
    "schedule": "fixed",
    "posterior": "none",
}
