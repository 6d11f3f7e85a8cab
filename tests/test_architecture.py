"""Every file has a level and imports only from its own level and below, without cycles."""

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import pyrocg

PACKAGE = Path(pyrocg.__file__).parent

LEVELS = [
    # 0: numbers and tensors
    "units networks distributions tempering weights tails bootstrap arviz_compat averages peptides "
    "optimization interruption tempering_faults graphs",
    # 1: molecules and functions of positions
    "molecules observables geometry zmatrix analysis surfaces atoms structure "
    "bonds backbones symmetries readers suitability",
    # 2: energies and coordinates
    "energies.abstract energies.bonded energies.born energies.cmap energies.compiled "
    "energies.contexts energies.conversion energies.custom energies.customforces "
    "energies.customgb energies.expressions energies.formulas energies.geometry energies.implicit "
    "energies.nonbonded energies.openmm energies.operations energies.program energies.quadrature "
    "energies.splines energies.terms energies.toy energies.copies energies.replicas "
    "energies.graphed energies.custompairs coordinates intervals placement rotors bijections "
    "cartesian internal",
    # 3: the target, and distributions given latents or coordinates
    "target basins priors encoders decoders weight_priors losses entropies couplings "
    "coupling_decoder minima basin_search flow_prior traces",
    # 4: the model/guide pair
    "cgmodel objectives langevin",
    # 5: training
    "training checkpoint curvature laplace posterior swag weight_draws reference scoring "
    "simulation cautions ensemble estimates estimators conditions training_loop training_state "
    "information bridges frames transitions steering evidence "
    "compiled_loss",
    # 6: prediction
    "prediction predictive comparison agreement annealing",
    # 7: around a run
    "config option presets sections machine plotting run runfolder run_prediction system tables "
    "pages arguments",
    # 8: the command line
    "cli console __main__",
]
LEVEL = {name: level for level, names in enumerate(LEVELS) for name in names.split()}
FILES = {
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts): path
    for path in PACKAGE.rglob("*.py")
    if path.name != "__init__.py"
}


def imports(path):
    """Modules of the package that a file imports, at the top or inside functions."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    inside = {name.removeprefix("pyrocg.") for name in found if name.startswith("pyrocg.")}
    return inside & FILES.keys()


def test_every_file_has_a_level():
    assert FILES.keys() == LEVEL.keys()
    assert len(LEVEL) == sum(len(names.split()) for names in LEVELS), "a file is listed twice"


@pytest.mark.parametrize("name", sorted(FILES))
def test_imports_point_downwards(name):
    above = {other for other in imports(FILES[name]) if LEVEL[other] > LEVEL[name]}
    assert above == set()


def test_imports_have_no_cycle():
    TopologicalSorter({name: imports(path) for name, path in FILES.items()}).prepare()


def test_only_the_command_line_prints():
    for name, path in FILES.items():
        calls = [n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Call)]
        prints = [c for c in calls if isinstance(c.func, ast.Name) and c.func.id == "print"]
        assert not prints or LEVEL[name] == 8, name


def run(code):
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return result.stdout.split()


def test_import_is_light():
    heavy = ["openmm", "matplotlib", "arviz", "mdtraj", "torch", "pyro"]
    assert run(f"import sys, pyrocg; print(*[m for m in {heavy} if m in sys.modules])") == []


def test_python_users_need_neither_plots_nor_arviz_to_train():
    code = "import sys, pyrocg; pyrocg.fit, pyrocg.DoubleWell; print(*sys.modules)"
    assert {"openmm", "matplotlib", "arviz"}.isdisjoint(run(code))


SIDE_EFFECTS = """
import logging, importlib, sys
import torch, pyro, torch.distributions
def settings():
    return (
        torch.get_default_dtype(), torch.get_default_device(), torch.is_grad_enabled(),
        torch.distributions.Distribution._Distribution__validate_args
        if hasattr(torch.distributions.Distribution, "_Distribution__validate_args")
        else torch.distributions.Distribution._validate_args,
        {name: pyro.settings.get(name) for name in pyro.settings.get()},
        logging.root.level, len(logging.root.handlers), len(pyro.get_param_store()),
        torch.get_rng_state().sum().item(), torch.get_num_threads(),
    )
before = settings()
for name in sys.argv[1].split():
    importlib.import_module("pyrocg." + name)
after = settings()
assert before == after, (before, after)
"""


def test_imports_have_no_side_effects():
    code = f"import sys; sys.argv = ['', {' '.join(sorted(FILES))!r}]\n{SIDE_EFFECTS}"
    run(code)


@pytest.mark.parametrize("name", pyrocg.__all__)
def test_public_names_resolve(name):
    assert getattr(pyrocg, name).__name__ == name
    assert getattr(pyrocg, name).__module__.startswith("pyrocg.")
    assert name in dir(pyrocg)


def test_unknown_names_are_attribute_errors():
    with pytest.raises(AttributeError, match="module 'pyrocg' has no attribute 'nothing'"):
        _ = pyrocg.nothing
