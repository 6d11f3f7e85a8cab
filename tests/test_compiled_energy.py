"""The compiled engine: OpenMM's numbers, one contract, honest failures."""

from __future__ import annotations

import copy
import dataclasses
import pickle
import platform
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import openmm
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from pyrocg.energies import compiled, program
from pyrocg.energies.abstract import CappedEnergy
from pyrocg.energies.compiled import CompiledEnergy, molecular_energy
from pyrocg.energies.conversion import UnsupportedForceError
from pyrocg.energies.openmm import OpenMMEnergy
from pyrocg.molecules import Molecule, alanine_dipeptide, peptide

MOLECULE = alanine_dipeptide()
DATA = Path(__file__).parent / "data"


@pytest.fixture(scope="module")
def energy() -> CompiledEnergy:
    return CompiledEnergy(MOLECULE, compile=False)


def structures(
    count: int,
    spread: float = 0.005,
    dtype: torch.dtype = torch.float64,
    molecule: Molecule = MOLECULE,
) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    noise = torch.randn(count, molecule.n_atoms, 3, generator=generator, dtype=torch.float64)
    return (torch.tensor(molecule.positions) + spread * noise).to(dtype)


def energy_and_force(energy: torch.nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    x = x.detach().requires_grad_()
    result = energy(x)
    (gradient,) = torch.autograd.grad(result.sum(), x)
    return result.detach(), -gradient


def from_amber() -> Molecule:
    return Molecule.from_amber(DATA / "ala2.prmtop", DATA / "ala2.inpcrd", implicit_solvent="OBC1")


SOLVATED: dict[str, Callable[[], Molecule]] = {
    "ff96-obc1": lambda: alanine_dipeptide("ff96-obc1"),
    "amber14-obc2": lambda: peptide("AAA"),
    "prmtop-obc1": from_amber,
    "amber19-gbn2": lambda: peptide("A", ("amber19/protein.ff19SB.xml", "implicit/gbn2.xml")),
}


def with_force(force: openmm.Force) -> Molecule:
    system = copy.deepcopy(MOLECULE.system)
    system.addForce(force)
    return dataclasses.replace(MOLECULE, system=system)


def refused() -> openmm.Force:
    return openmm.CustomCentroidBondForce(2, "distance(g1,g2)^2")


@pytest.mark.parametrize("spread", [0.0, 0.005, 0.03, 0.1, 0.3])
def test_energies_and_forces_are_those_of_openmm(energy, spread):
    x = structures(20, spread)
    reference = OpenMMEnergy(MOLECULE, platform="Reference", workers=1)
    expected, expected_force = energy_and_force(reference, x)
    result, force = energy_and_force(energy, x)
    torch.testing.assert_close(result, expected, rtol=1e-9, atol=1e-9)
    scale = expected_force.abs().amax(dim=(1, 2))
    assert ((force - expected_force).abs().amax(dim=(1, 2)) <= 1e-10 * scale).all()


def test_single_precision_is_close_on_thermal_structures(energy):
    x = structures(50)
    exact, exact_force = energy_and_force(energy, x)
    single, single_force = energy_and_force(energy, x.float())
    assert single.dtype == single_force.dtype == torch.float32
    torch.testing.assert_close(single.double(), exact, rtol=1e-5, atol=1e-3)
    scale = exact_force.abs().amax(dim=(1, 2), keepdim=True)
    assert ((single_force - exact_force).abs() <= 1e-5 * scale).all()


@pytest.mark.parametrize("name", SOLVATED)
def test_custom_solvents_are_compiled_and_are_those_of_openmm(name):
    molecule = SOLVATED[name]()
    energy = molecular_energy(molecule)
    assert isinstance(energy, CompiledEnergy)
    energy = CompiledEnergy(molecule, compile=False)
    assert "GeneralizedBorn" in repr(energy)
    reference = OpenMMEnergy(molecule, platform="Reference", workers=1)
    x = torch.cat([structures(2, spread, molecule=molecule) for spread in (0.003, 0.03, 0.3)])
    expected, expected_force = energy_and_force(reference, x)
    result, force = energy_and_force(energy, x)
    torch.testing.assert_close(result, expected, rtol=1e-9, atol=1e-9)
    scale = expected_force.abs().amax(dim=(1, 2))
    assert ((force - expected_force).abs().amax(dim=(1, 2)) <= 1e-10 * scale).all()
    single, single_force = energy_and_force(energy, x[:2].float())
    torch.testing.assert_close(single.double(), expected[:2], rtol=1e-5, atol=1e-3)
    error = (single_force - expected_force[:2]).abs().amax(dim=(1, 2))
    assert (error <= 1e-5 * scale[:2]).all()


@pytest.mark.parametrize("batch", [(), (1,), (5,), (2, 3), (16,)])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_the_batch_shape_and_the_dtype_are_kept(energy, batch, dtype):
    x = structures(int(np.prod(batch)), dtype=dtype).reshape(*batch, MOLECULE.n_atoms, 3)
    result, force = energy_and_force(energy, x)
    assert result.shape == batch
    assert force.shape == x.shape
    assert result.dtype == force.dtype == dtype


def test_the_precision_can_be_fixed(energy):
    double = CompiledEnergy(MOLECULE, torch.float64, compile=False)
    x = structures(3, dtype=torch.float32)
    result, force = energy_and_force(double, x)
    exact, exact_force = energy_and_force(energy, x.double())
    assert torch.equal(result, exact.float())
    assert torch.equal(force, exact_force.float())
    with pytest.raises(ValueError, match="float32, float64 or None"):
        CompiledEnergy(MOLECULE, torch.float16)


def test_a_large_batch_is_split_and_a_batch_equals_its_members(energy, monkeypatch):
    x = structures(70)
    whole, whole_force = energy_and_force(energy, x)
    monkeypatch.setattr(program, "chunk_size", lambda *_: 32)
    parts, parts_force = energy_and_force(copy.deepcopy(energy), x)
    one, one_force = energy_and_force(energy, x[41])
    torch.testing.assert_close(parts, whole, rtol=1e-13, atol=1e-11)
    torch.testing.assert_close(parts_force, whole_force, rtol=1e-12, atol=1e-9)
    torch.testing.assert_close(one, whole[41], rtol=1e-13, atol=1e-11)
    torch.testing.assert_close(one_force, whole_force[41], rtol=1e-12, atol=1e-9)


def test_threads_share_a_batch_and_change_nothing(energy, monkeypatch):
    """The uncompiled program, as if it could be shared."""
    shared = copy.deepcopy(energy)
    x = structures(333)
    expected, expected_force = energy_and_force(energy, x)
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        energy_and_force(shared, x[:1])
        (running,) = shared._programs.values()
        running._threaded = True
        assert len(running._chunks(x)) == 3
        result, force = energy_and_force(shared, x)
    finally:
        torch.set_num_threads(before)
    torch.testing.assert_close(result, expected, rtol=1e-13, atol=1e-11)
    torch.testing.assert_close(force, expected_force, rtol=1e-12, atol=1e-9)


def test_no_operation_around_the_program_is_large_enough_for_openmp(energy, monkeypatch):
    """Torch computes 32768 numbers and more with OpenMP, whose idle threads take cores away."""
    largest = []

    class Sizes(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            result = func(*args, **(kwargs or {}))
            computes = not (func.is_view or "empty" in func.name() or "split" in func.name())
            if computes and isinstance(result, Tensor):
                largest.append(result.numel())
            return result

    def trivial(x):
        return x[0, 0].clone(), x

    x = structures(2000, dtype=torch.float32)
    energy_and_force(energy, x[:1])
    running = copy.copy(energy._programs[torch.float32, x.device])
    running._columns = trivial
    with Sizes():
        _, gradients = running(x)
        result = program.weighted(gradients, torch.ones(2000), torch.float32)
    assert 0 < max(largest) < 32768
    torch.testing.assert_close(result, x)


def test_memory_beyond_the_results_is_bounded(energy, monkeypatch):
    """With a limit of 32 configurations at a time."""
    sizes = []

    def spy(x, dtype):
        sizes.append(len(x))
        return as_columns(x, dtype)

    as_columns = program._as_columns
    monkeypatch.setattr(program, "chunk_size", lambda *_: 32)
    monkeypatch.setattr(program, "_as_columns", spy)
    split = copy.deepcopy(energy)
    result, force = energy_and_force(split, structures(100))
    assert sizes == [32, 32, 32, 4]
    expected, expected_force = energy_and_force(energy, structures(100))
    torch.testing.assert_close(result, expected, rtol=1e-13, atol=1e-11)
    torch.testing.assert_close(force, expected_force, rtol=1e-12, atol=1e-9)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_the_memory_of_a_chunk_is_kept_for_the_next():
    """Pages that fault in ten chunks of 32 MB, after ten."""
    code = """
import resource, torch
from pyrocg.energies.program import _ask_to_keep
def chunk():
    [torch.zeros(1_000_000) for _ in range(8)]
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        chunk()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
_ask_to_keep()
faults()
print(faults())
"""
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    assert int(done.stdout) < 1000  # 16 000 otherwise


def test_nothing_waits_for_a_device_and_nothing_is_left_on_another():
    """On the device without numbers, where asking for one is an error, as is another device."""
    energy = CompiledEnergy(MOLECULE, compile=False)
    energy(structures(2))
    x = torch.empty(40, MOLECULE.n_atoms, 3, device="meta", requires_grad=True)
    for _ in range(2):
        energies = energy(x)
        (gradient,) = torch.autograd.grad(energies.sum(), x)
        assert energies.device == gradient.device == x.device


def test_chunks_are_whole_vectors_and_shrink_with_the_molecule():
    cpu = torch.device("cpu")
    sizes = [program.chunk_size(n, torch.float32, cpu) for n in (2, 22, 166, 2000)]
    assert all(size % 16 == 0 and size >= 16 for size in sizes)
    assert sizes == sorted(sizes, reverse=True)
    assert 6 * sizes[0] < 32768


def test_gradcheck(energy):
    x = structures(1).requires_grad_()
    assert torch.autograd.gradcheck(energy, (x,), eps=1e-6, atol=1e-2, rtol=1e-4)


def test_second_derivatives_are_refused(energy):
    x = structures(2).requires_grad_()
    (gradient,) = torch.autograd.grad(energy(x).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="first derivatives of a compiled energy"):
        gradient.sum().backward()


def test_weights_reach_the_gradient(energy):
    x = structures(3).requires_grad_()
    weights = torch.tensor([0.5, 0.0, -2.0], dtype=torch.float64)
    (gradient,) = torch.autograd.grad((weights * energy(x)).sum(), x)
    _, force = energy_and_force(energy, x)
    torch.testing.assert_close(gradient, -weights[:, None, None] * force)


def test_a_cap_turns_broken_configurations_into_zero_force(energy):
    x = structures(3)
    x[1, 5] = x[1, 4]
    assert not torch.isfinite(energy_and_force(energy, x)[1][1]).all()
    capped, force = energy_and_force(CappedEnergy(energy, cap=1e4), x)
    assert torch.isfinite(capped).all()
    assert not force[1].any()
    torch.testing.assert_close(force[::2], energy_and_force(energy, x)[1][::2])


def test_nan_positions_give_a_nan_that_is_counted():
    energy = CompiledEnergy(MOLECULE, compile=False)
    x = structures(3)
    x[1, 3, 2] = torch.nan
    assert torch.isnan(energy(x)).tolist() == [False, True, False]
    assert (energy.calls, energy.nonfinite) == (3, 1)
    assert f"the position of {energy.atom_names[3]} (index 3) is not finite" in energy.report()


def test_overlapping_atoms_are_reported():
    energy = CompiledEnergy(MOLECULE, compile=False)
    x = structures(3)
    x[1, 5] = x[1, 4]
    energy(x)
    names = energy.atom_names
    assert energy.report() == (
        "1 of 3 energies were not finite; in the latest, the closest atoms are "
        f"{names[4]} (index 4) and {names[5]} (index 5), 0 nm apart"
    )


def test_copies_give_the_same_numbers_and_leave_compiled_code_behind(energy):
    x = structures(2)
    expected = energy(x)
    assert energy._programs
    for twin in (copy.deepcopy(energy), pickle.loads(pickle.dumps(energy))):
        assert not twin._programs
        assert torch.equal(twin(x), expected)
    assert not energy.state_dict()
    assert not list(energy.parameters())


def test_it_works_without_gradients_and_in_inference_mode(energy):
    x = structures(2)
    with torch.no_grad():
        expected = energy(x)
    with torch.inference_mode():
        assert torch.equal(energy(x * 1.0), expected)


def test_a_force_without_a_term_is_refused_by_class_and_index():
    with pytest.raises(UnsupportedForceError, match=r"CustomCentroidBondForce \(force 5\)"):
        CompiledEnergy(with_force(refused()))


def test_a_disagreement_with_openmm_is_refused(monkeypatch):
    def wrong(system):
        first, *others = terms_of(system)
        return (dataclasses.replace(first, length=first.length * (1 + 1e-6)), *others)

    terms_of = compiled.terms_of
    monkeypatch.setattr(compiled, "terms_of", wrong)
    with pytest.raises(RuntimeError, match="agree with OpenMM's Reference"):
        CompiledEnergy(MOLECULE)


def restraint() -> openmm.Force:
    """Flat at its bottom, where OpenMM's force is NaN: the distance has no derivative at 0."""
    force = openmm.CustomExternalForce("100*max(0,r-0.02)^2; r=sqrt((x-x0)^2+(y-y0)^2+(z-z0)^2)")
    for name in ("x0", "y0", "z0"):
        force.addPerParticleParameter(name)
    force.addParticle(3, list(MOLECULE.positions[3]))
    return force


def test_a_force_without_a_value_at_the_structure_is_compiled():
    energy = CompiledEnergy(with_force(restraint()), compile=False)
    x = structures(5, 0.05)
    expected = OpenMMEnergy(with_force(restraint()), platform="Reference", workers=1)
    for a, b in zip(energy_and_force(energy, x), energy_and_force(expected, x), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-6)


def test_a_nan_force_of_ours_alone_is_an_error():
    forces = np.zeros((2, 1, 3))
    energies, mine = np.zeros(2), forces.copy()
    mine[1, 0, 0] = np.nan
    assert compiled._largest_error((energies, forces), (energies, forces)) == 0.0
    assert np.isnan(compiled._largest_error((energies, mine), (energies, forces)))
    assert compiled._largest_error((energies, forces), (energies, mine)) == 0.0


def test_the_engine_is_chosen_and_says_why():
    chosen = molecular_energy(MOLECULE)
    assert isinstance(chosen, CompiledEnergy)
    assert "every force" in chosen.engine_reason
    assert "terms=(HarmonicBonds" in repr(chosen)
    named = molecular_energy(MOLECULE, "openmm")
    assert isinstance(named, OpenMMEnergy)
    assert named.engine_reason == "asked for"
    assert isinstance(molecular_energy(MOLECULE, "compiled"), CompiledEnergy)
    other = with_force(refused())
    fallback = molecular_energy(other)
    assert isinstance(fallback, OpenMMEnergy)
    assert "CustomCentroidBondForce (force 5)" in fallback.engine_reason
    with pytest.raises(UnsupportedForceError):
        molecular_energy(other, "compiled")
    with pytest.raises(ValueError, match="'auto', 'compiled', 'openmm' or 'copies'"):
        molecular_energy(MOLECULE, "fast")


def test_importing_it_does_not_import_openmm():
    code = "import sys, pyrocg.energies.compiled; sys.exit('openmm' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_without_a_compiler_it_warns_and_runs_uncompiled(energy, monkeypatch):
    def broken(*_):
        raise RuntimeError("no working C++ compiler found")

    monkeypatch.setattr(program, "compiled", broken)
    uncompiled = CompiledEnergy(MOLECULE)
    x = structures(2)
    with pytest.warns(RuntimeWarning, match=r"torch.compile failed \(no working C\+\+"):
        result = uncompiled(x)
    assert torch.equal(result, energy(x))
    assert torch.equal(uncompiled(x), energy(x))  # and says it once: a second warning is an error


@pytest.mark.parametrize("name", [None, "amber19-gbn2"])
def test_compiled_and_eager_are_the_same(name):
    molecule = SOLVATED[name]() if name else MOLECULE
    fast, energy = CompiledEnergy(molecule), CompiledEnergy(molecule, compile=False)
    for count in (300, 1, 16, 50):
        x = structures(count, 0.02, torch.float32, molecule)
        expected, expected_force = energy_and_force(energy, x)
        result, force = energy_and_force(fast, x)
        torch.testing.assert_close(result, expected, rtol=1e-5, atol=1e-2)
        scale = expected_force.abs().amax(dim=(1, 2), keepdim=True)
        assert ((force - expected_force).abs() <= 1e-5 * scale).all()
    (running,) = fast._programs.values()
    assert not running._pending
    assert running._threaded  # not the fallback
