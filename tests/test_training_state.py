import pytest
import torch
from toy_models import solved_model

from pyrocg.checkpoint import load_state
from pyrocg.training import fit

FEW = {"steps": 2, "num_samples": 8, "evaluate_every": 2, "evaluate_samples": 8, "progress": False}


def forbidden(*_):
    raise AssertionError("a GPU that is not in use")


def test_a_training_on_the_cpu_leaves_the_generators_of_gpus_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for name in ("get_rng_state", "get_rng_state_all", "set_rng_state", "set_rng_state_all"):
        monkeypatch.setattr(torch.cuda, name, forbidden)
    for _ in range(2):  # the second one restores
        fit(solved_model(), **FEW, checkpoint=tmp_path / "state.pt")
    assert load_state(tmp_path / "state.pt")["cuda_random"] == []


def test_the_generator_of_the_gpu_in_use_is_saved_and_restored(tmp_path, monkeypatch):
    """On machines without GPUs too: the model is on the CPU, and taken to be on the second one."""
    put = []
    monkeypatch.setattr("pyrocg.training_state.gpus_of", lambda _: [1])
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda gpu: torch.tensor([7 + gpu]))
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda state, gpu: put.append((state, gpu)))
    for _ in range(2):
        fit(solved_model(), **FEW, checkpoint=tmp_path / "state.pt")
    assert put == [(torch.tensor([8]), 1)]


def test_a_checkpoint_of_an_optimiser_with_other_groups_says_so(tmp_path):
    file = tmp_path / "state.pt"
    fit(solved_model(), **FEW, checkpoint=file)

    def in_two_groups(parameters):
        first, *others = parameters
        return torch.optim.Adam([{"params": [first]}, {"params": others}], lr=1e-3)

    with pytest.raises(ValueError, match=r"Adam with 2 groups .* got SOAP with 1; .*version"):
        fit(solved_model(), **FEW, checkpoint=file, optimizer=in_two_groups)
