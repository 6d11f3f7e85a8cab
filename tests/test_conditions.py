import pytest
import torch
from toy_models import solved_model

from pyrocg.cgmodel import CoarseGrainedModel
from pyrocg.conditions import at_target, gpus_of, seeded
from pyrocg.coordinates import IdentityCoordinates
from pyrocg.energies.toy import DoubleWell
from pyrocg.target import BoltzmannTarget


def mixture_model():
    target = BoltzmannTarget(DoubleWell(), beta=1.0)
    with seeded(0, []):
        return CoarseGrainedModel.from_basins(target, IdentityCoordinates(2), latent_dim=1)


def fails():
    torch.rand(3)
    raise RuntimeError("on purpose")


def test_the_same_seed_gives_the_same_numbers():
    drawn = []
    for seed in (1, 1, 2):
        with seeded(seed, []):
            drawn.append(torch.rand(3))
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


def test_the_global_generator_is_left_alone_also_after_an_error():
    before = torch.get_rng_state()
    with pytest.raises(RuntimeError, match="on purpose"), seeded(5, []):
        fails()
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_the_generator_of_the_gpu_is_seeded_and_left_alone():
    tensor, before = torch.zeros(1, device="cuda"), torch.cuda.get_rng_state()
    with seeded(5, [tensor]):
        first = torch.rand(3, device="cuda")
    assert torch.equal(torch.cuda.get_rng_state(), before)
    with seeded(5, [tensor]):
        assert torch.equal(first, torch.rand(3, device="cuda"))


def test_the_gpus_that_hold_something():
    assert gpus_of([torch.zeros(2), torch.zeros(3)]) == []
    if torch.cuda.is_available():
        assert gpus_of([torch.zeros(2), torch.zeros(2, device="cuda:0")]) == [0]


def test_a_model_is_at_t_1_in_the_shares_asked_for():
    cg = mixture_model()
    weights = torch.linspace(1.0, 2.0, len(cg.prior.shares))
    cg.prior.set_shares(weights)
    cg.temper, before = 0.25, cg.prior.shares.clone()
    with at_target(cg, torch.ones_like):
        assert cg.temper == 1.0
        assert torch.equal(cg.prior.shares, torch.full_like(before, 1 / len(before)))
    assert cg.temper == 0.25
    assert torch.equal(cg.prior.shares, before)


def test_a_model_is_as_before_also_after_an_error():
    cg = mixture_model()
    cg.temper, before = 0.25, cg.prior.shares.clone()
    with pytest.raises(RuntimeError, match="on purpose"), at_target(cg, torch.ones_like):
        fails()
    assert cg.temper == 0.25
    assert torch.equal(cg.prior.shares, before)


def test_a_model_without_components_has_no_shares_to_change():
    cg = solved_model()
    cg.temper = 0.25
    with at_target(cg, torch.ones_like):
        assert cg.temper == 1.0
    assert cg.temper == 0.25
