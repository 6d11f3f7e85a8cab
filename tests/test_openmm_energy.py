"""The OpenMM energy: against a fresh Context, over several processes, and when things go wrong."""

from __future__ import annotations

import copy
import math
import os
import pickle
import signal
import subprocess
import sys
import textwrap
import time

import numpy as np
import openmm
import pytest
import torch
from torch import Tensor

from pyrocg.energies.contexts import BatchContext, ContextPool, ContextSetup
from pyrocg.energies.openmm import OpenMMEnergy, choose_platform
from pyrocg.molecules import Molecule, alanine_dipeptide, peptide

posix_only = pytest.mark.skipif(os.name != "posix", reason="signals and /bin/ps of POSIX")


@pytest.fixture(scope="module")
def molecule() -> Molecule:
    return alanine_dipeptide()


@pytest.fixture(scope="module")
def single(molecule: Molecule) -> OpenMMEnergy:
    return OpenMMEnergy(molecule, platform="Reference", workers=1)


def configurations(molecule: Molecule, n: int) -> Tensor:
    noise = torch.randn(n, molecule.n_atoms, 3, dtype=torch.float64)
    return torch.tensor(molecule.positions) + 0.005 * noise


def reference(molecule: Molecule, x: Tensor) -> tuple[np.ndarray, np.ndarray]:
    platform = openmm.Platform.getPlatformByName("Reference")
    context = openmm.Context(molecule.system, openmm.VerletIntegrator(0.001), platform)
    energies, forces = [], []
    for positions in x.numpy():
        context.setPositions(positions)
        state = context.getState(energy=True, forces=True)
        energies.append(state.getPotentialEnergy().value_in_unit(openmm.unit.kilojoule_per_mole))
        forces.append(state.getForces(asNumpy=True)._value)
    return np.array(energies), np.array(forces)


def test_importing_the_module_does_not_load_openmm():
    code = "import sys, pyrocg.energies.openmm; sys.exit('openmm' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60, check=False).returncode == 0


def test_energies_and_forces_are_those_of_a_fresh_context(molecule, single):
    x = configurations(molecule, 6)
    energies, forces = reference(molecule, x)
    got_energies, got_forces = single.energy_and_forces(x.numpy().reshape(2, 3, -1, 3))
    assert np.abs(got_energies.ravel() - energies).max() < 1e-10
    assert np.abs(got_forces.reshape(forces.shape) - forces).max() < 1e-8
    x.requires_grad_()
    (gradient,) = torch.autograd.grad((single(x) * torch.arange(6.0)).sum(), x)
    expected = -forces * np.arange(6.0)[:, None, None]
    np.testing.assert_allclose(gradient.numpy(), expected, rtol=1e-12)


def test_forces_are_computed_only_when_they_are_needed(molecule, single, monkeypatch):
    asked = []
    evaluate = BatchContext.evaluate

    def spy(self, x, forces):
        asked.append(forces)
        return evaluate(self, x, forces)

    monkeypatch.setattr(BatchContext, "evaluate", spy)
    x = configurations(molecule, 2)
    plain = single(x)
    with_forces = single(x.clone().requires_grad_())
    with torch.no_grad():
        single(x.clone().requires_grad_())
    assert asked == [False, True, False]
    assert torch.equal(plain, with_forces.detach())


def test_a_pool_gives_the_same_bits_as_one_context(molecule, single):
    pool = OpenMMEnergy(molecule, platform="Reference", workers=3)
    x = configurations(molecule, 101).requires_grad_()
    x.data[7, 0, 0] = torch.nan
    for part in (x, x[:40], x[:3]):
        one, many = single(part), pool(part)
        (g_one,) = torch.autograd.grad(one.nansum(), x)
        (g_many,) = torch.autograd.grad(many.nansum(), x)
        torch.testing.assert_close(many, one, rtol=0, atol=0, equal_nan=True)
        torch.testing.assert_close(g_many, g_one, rtol=0, atol=0, equal_nan=True)
    assert pool._pool is not None
    assert len(pool._pool._processes) == 2


def test_the_cpu_platform_agrees_in_single_precision(molecule, single):
    x = configurations(molecule, 40)
    one = OpenMMEnergy(molecule, platform="CPU", workers=1)
    two = OpenMMEnergy(molecule, platform="CPU", workers=2)
    assert torch.equal(one(x), two(x))
    torch.testing.assert_close(one(x), single(x), rtol=1e-5, atol=1e-2)


def test_a_second_derivative_is_refused(molecule, single):
    x = configurations(molecule, 1).requires_grad_()
    (gradient,) = torch.autograd.grad(single(x).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="first derivatives of an OpenMM energy"):
        (gradient.square().sum() + x.sum()).backward()


def test_a_zero_weight_gives_a_zero_gradient_whatever_the_force(molecule, single):
    x = configurations(molecule, 3)
    x[1, 3] = x[1, 9]
    x[2] = torch.nan
    x.requires_grad_()
    weight = torch.tensor([2.0, 0.0, 0.0], dtype=torch.float64)
    (gradient,) = torch.autograd.grad(single(x), x, grad_outputs=weight)
    assert torch.isfinite(gradient).all()
    assert gradient[1:].abs().max() == 0


def test_non_finite_energies_are_reported_with_their_atoms(molecule):
    energy = OpenMMEnergy(molecule, platform="Reference", workers=1)
    assert energy.report() == ""
    x = configurations(molecule, 4)
    x[2, 4] = x[2, 15]
    assert not torch.isfinite(energy(x)[2])
    i, j = energy.atom_names[4], energy.atom_names[15]
    assert energy.report() == (
        "1 of 4 energies were not finite; in the latest, the closest atoms are "
        f"{i} (index 4) and {j} (index 15), 0 nm apart"
    )
    x[1, 6, 2] = torch.inf
    energies, _ = energy.energy_and_forces(x[1].numpy())
    assert np.isnan(energies)
    assert energy.nonfinite == 2
    assert f"the position of {energy.atom_names[6]} (index 6) is not finite" in energy.report()
    assert "\n" not in energy.report()


@pytest.mark.parametrize("platform", ["Reference", "CPU"])
@pytest.mark.parametrize("value", [0.0, 1e-200, 1e20, 1e300, float("inf"), float("nan")])
def test_no_positions_raise(molecule, platform, value):
    energy = OpenMMEnergy(molecule, platform=platform, workers=1)
    x = torch.full((2, molecule.n_atoms, 3), value, dtype=torch.float64, requires_grad=True)
    energy(x).sum().backward()
    assert x.grad.shape == x.shape
    assert energy.calls == 2
    assert energy.nonfinite == 2 or math.isfinite(value)


def test_copies_do_not_share_contexts(molecule, single):
    x = configurations(molecule, 2)
    expected = single(x)
    for twin in (copy.deepcopy(single), pickle.loads(pickle.dumps(single))):
        assert twin._pool is None
        assert torch.equal(twin(x), expected)
        assert (twin.platform, twin.workers) == ("Reference", 1)


def test_a_platform_is_chosen_by_rule(molecule):
    assert choose_platform(molecule.system) == "Reference"
    parsed = peptide("A")  # its default force field has a CustomGBForce
    assert choose_platform(parsed.system) != "Reference"
    assert OpenMMEnergy(molecule).workers >= 1


def test_unusable_arguments_are_refused(molecule):
    with pytest.raises(ValueError, match=r"one of the OpenMM platforms Reference.*'Abacus'"):
        OpenMMEnergy(molecule, platform="Abacus")
    with pytest.raises(ValueError, match="workers >= 1"):
        OpenMMEnergy(molecule, workers=0)


def test_an_error_in_a_worker_is_one_clear_line():
    setup = ContextSetup("this is no System", "Reference", {})
    pool = ContextPool(setup, workers=2)
    pool._local = object.__new__(BatchContext)  # this process's own share is not the question
    pool._local.evaluate = lambda x, forces: (np.zeros(len(x)), None)  # type: ignore[method-assign]
    with pytest.raises(RuntimeError, match=r"^an OpenMM worker process failed: \w+: .*$") as info:
        pool.evaluate(np.zeros((64, 1, 3)), False)
    assert "\n" not in str(info.value)
    assert pool._processes == []


def test_a_killed_worker_is_reported_and_replaced(molecule, single):
    pool = OpenMMEnergy(molecule, platform="Reference", workers=2)
    x = configurations(molecule, 64)
    expected = pool(x)
    worker = pool._pool._processes[0]._process  # type: ignore[union-attr]
    worker.kill()
    worker.wait()
    with pytest.raises(RuntimeError, match=r"ended with exit code -?[0-9]+"):
        pool(x)
    assert torch.equal(pool(x), expected)


SCRIPT = """
    import sys, time
    import torch
    from pyrocg.energies.openmm import OpenMMEnergy
    from pyrocg.molecules import alanine_dipeptide

    molecule = alanine_dipeptide()
    energy = OpenMMEnergy(molecule, platform="Reference", workers=2)
    x = torch.tensor(molecule.positions).expand(64, -1, -1)
    print(energy(x).sum().item())
    print(*[p._process.pid for p in energy._pool._processes], flush=True)
"""


def start(tmp_path, more: str = "") -> subprocess.Popen[str]:
    path = tmp_path / "plain_script.py"  # no main guard, and a file that could be re-imported
    path.write_text(textwrap.dedent(SCRIPT) + more)
    pipe = subprocess.PIPE
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    return subprocess.Popen(
        [sys.executable, "-W", "error", str(path)],
        stdout=pipe,
        stderr=pipe,
        text=True,
        env=environment,
    )


def has_ended(pid: int) -> bool:
    for _ in range(50):
        try:
            os.kill(pid, 0)
            with open(f"/proc/{pid}/stat") as stat:  # a zombie that init has not reaped yet is gone
                if stat.read().rsplit(")", 1)[1].split()[0] == "Z":
                    return True
        except (ProcessLookupError, FileNotFoundError):
            return True
        time.sleep(0.1)
    return False


@posix_only
def test_a_plain_script_uses_workers_and_exits_promptly(tmp_path, molecule, single):
    with start(tmp_path) as script:
        assert script.stdout is not None
        total = float(script.stdout.readline())
        pid = int(script.stdout.readline())
        begin = time.monotonic()
        _, errors = script.communicate(timeout=60)
        assert (script.returncode, errors) == (0, "")
        assert time.monotonic() - begin < 10
    assert total == single(torch.tensor(molecule.positions).expand(64, -1, -1)).sum().item()
    assert has_ended(pid)


@posix_only
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_workers_end_with_an_interrupted_script(tmp_path, how):
    # a pytest in the background may have handed down an ignored SIGINT
    endless = "import signal\nsignal.signal(signal.SIGINT, signal.default_int_handler)\n"
    endless += "print('ready', flush=True)\nwhile True:\n    energy(x.repeat(20, 1, 1))\n"
    with start(tmp_path, endless) as script:
        assert script.stdout is not None
        script.stdout.readline()
        pid = int(script.stdout.readline())
        assert script.stdout.readline() == "ready\n"
        script.send_signal(how)
        try:
            _, errors = script.communicate(timeout=60)
        finally:
            script.kill()
        assert script.returncode == -how
        if how == signal.SIGINT:
            assert errors.rstrip().endswith("KeyboardInterrupt")
    assert has_ended(pid)


@posix_only
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_child_starts_its_own_contexts(molecule):
    pool = OpenMMEnergy(molecule, platform="Reference", workers=2)
    x = configurations(molecule, 64).numpy()
    expected, _ = pool._evaluate(x, False)
    child = os.fork()
    if child == 0:
        signal.alarm(60)  # a child that hangs must not hang the tests
        ok = np.array_equal(pool._evaluate(x, False)[0], expected)
        os._exit(0 if ok else 1)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    assert np.array_equal(pool._evaluate(x, False)[0], expected)
