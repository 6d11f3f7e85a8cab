import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from scipy import stats

from pyrocg.distributions import (
    MixedNormal,
    MoebiusNormal,
    StratifiedCategorical,
    WrappedNormal,
    moebius,
    wrap,
)

TWO_PI = 2 * math.pi
GRID = torch.linspace(-math.pi, math.pi, 4001, dtype=torch.float64)[:-1]


def dense_wrapped_density(x, loc, scale):
    """The defining sum with 101 images in place of 7."""
    shifts = TWO_PI * torch.arange(-50, 51, dtype=torch.float64)
    images = x.double()[..., None] + shifts
    return torch.exp(dist.Normal(loc, scale).log_prob(images)).sum(-1)


# wrap


def test_wrap_is_in_the_half_open_interval_with_gradient_one():
    angle = torch.tensor([-math.pi, math.pi, 3.2, -3.2, 20.0, 0.0], dtype=torch.float64)
    angle.requires_grad_()
    wrapped = wrap(angle)
    assert bool((wrapped >= -math.pi).all())
    assert bool((wrapped < math.pi).all())
    torch.testing.assert_close(wrapped.cos(), angle.cos())
    torch.testing.assert_close(wrapped.sin(), angle.sin())
    (gradient,) = torch.autograd.grad(wrapped.sum(), angle)
    assert bool((gradient == 1).all())


# WrappedNormal


@pytest.mark.parametrize("scale", [0.05, 0.5, 1.5, 4.0])
@pytest.mark.parametrize("loc", [0.3, -3.1, 17.0])
def test_wrapped_normal_is_the_normalised_sum(loc, scale):
    loc, scale = torch.tensor([loc, scale], dtype=torch.float64)
    density = WrappedNormal(loc, scale).log_prob(GRID).exp()
    torch.testing.assert_close(density, dense_wrapped_density(GRID, loc, scale), rtol=1e-6, atol=0)
    assert (density.mean() * TWO_PI).item() == pytest.approx(1.0, abs=2e-7)


def test_wrapped_normal_is_periodic_in_value_and_location():
    d = WrappedNormal(torch.tensor(3.0), torch.tensor(0.4))
    shifted = WrappedNormal(torch.tensor(3.0 + TWO_PI), torch.tensor(0.4))
    x = torch.linspace(-3, 3, 7)
    torch.testing.assert_close(d.log_prob(x + TWO_PI), d.log_prob(x), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(shifted.log_prob(x), d.log_prob(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("loc", "scale"), [(3.0, 0.3), (-1.0, 1.2), (0.0, 3.0)])
def test_wrapped_normal_samples_follow_the_density(loc, scale):
    assert kolmogorov_smirnov(WrappedNormal(*torch.tensor([loc, scale], dtype=torch.float64)))


def kolmogorov_smirnov(d):
    """Whether samples agree with the density, by a test that refuses one in a hundred."""
    torch.manual_seed(0)
    draws = d.sample((4000,))
    assert bool((draws.abs() <= math.pi).all())
    cumulative = torch.cat(
        [torch.zeros(1), (d.log_prob(GRID).exp() * TWO_PI / len(GRID)).cumsum(0)]
    )
    nodes = torch.cat([GRID, torch.tensor([math.pi])])

    def cdf(x):
        return stats.rv_histogram((cumulative.diff().numpy(), nodes.numpy()), density=False).cdf(x)

    return stats.kstest(draws.numpy(), cdf).pvalue > 0.01


def test_wrapped_normal_is_reparametrised():
    """d/dσ E[cos(x - μ)] = d/dσ exp(-σ²/2) = -σ exp(-σ²/2), pathwise."""
    torch.manual_seed(0)
    scale = torch.tensor(0.8, dtype=torch.float64, requires_grad=True)
    x = WrappedNormal(torch.zeros_like(scale), scale).rsample((200_000,))
    (gradient,) = torch.autograd.grad(x.cos().mean(), scale)
    assert gradient.item() == pytest.approx(-0.8 * math.exp(-0.32), abs=5e-3)


def test_wrapped_normal_log_prob_gradients_are_those_of_finite_differences():
    inputs = torch.tensor([2.9, -3.0, 0.7], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda t: WrappedNormal(t[0], t[1:2].abs()).log_prob(t[2]), inputs
    )


def test_wrapped_normal_expands_and_becomes_an_event():
    d = WrappedNormal(torch.zeros(3), torch.ones(3)).expand([5, 3])
    assert d.batch_shape == (5, 3)
    assert d.to_event(1).event_shape == (3,)
    assert d.to_event(1).log_prob(d.sample()).shape == (5,)


def test_wrapped_normal_in_a_plate_with_validation():
    def program():
        with pyro.plate("samples", 6):
            return pyro.sample("x", WrappedNormal(torch.zeros(2), torch.ones(2)).to_event(1))

    with pyro.validation_enabled(True):
        trace = poutine.trace(program).get_trace()
        trace.compute_log_prob()
    assert trace.nodes["x"]["log_prob"].shape == (6,)


@pytest.mark.parametrize("scale", [-0.1, 4.5])
def test_wrapped_normal_refuses_scales_it_cannot_sum(scale):
    with pytest.raises(ValueError, match="scale"):
        WrappedNormal(torch.zeros(()), torch.tensor(scale), validate_args=True)


# MoebiusNormal

OMEGAS = [[0.0, 0.0], [-0.4, 0.0], [0.2, -0.6], [-0.9, 0.3]]


def moebius_normal(omega, loc=2.5, scale=0.9):
    return MoebiusNormal(*torch.tensor([loc, scale], dtype=torch.float64), tensor(omega))


def tensor(values):
    return torch.tensor(values, dtype=torch.float64)


@pytest.mark.parametrize("omega", OMEGAS)
def test_moebius_maps_the_circle_onto_itself(omega):
    angle = torch.linspace(-3.0, 3.0, 13, dtype=torch.float64, requires_grad=True)
    mapped, log_slope = moebius(angle, tensor(omega))
    z, w = torch.polar(torch.ones_like(angle), angle), complex(*omega)
    expected = (1 - abs(w) ** 2) / (z - w).abs() ** 2 * (z - w) - w
    torch.testing.assert_close(torch.polar(torch.ones_like(mapped), mapped), expected)
    torch.testing.assert_close(torch.autograd.grad(mapped.sum(), angle)[0], log_slope.exp())
    back, log_slope_back = moebius(mapped, -tensor(omega))
    torch.testing.assert_close(back, angle)
    torch.testing.assert_close(log_slope_back, -log_slope)


@pytest.mark.parametrize("omega", OMEGAS)
def test_moebius_normal_is_normalised_and_periodic(omega):
    d = moebius_normal(omega)
    assert (d.log_prob(GRID).exp().mean() * TWO_PI).item() == pytest.approx(1.0, abs=1e-6)
    torch.testing.assert_close(d.log_prob(GRID + TWO_PI), d.log_prob(GRID))


@pytest.mark.parametrize("omega", OMEGAS[:3])
def test_moebius_normal_samples_follow_the_density(omega):
    assert kolmogorov_smirnov(moebius_normal(omega))


def test_moebius_normal_without_a_map_is_the_wrapped_normal():
    wrapped = WrappedNormal(tensor(2.5), tensor(0.9))
    torch.testing.assert_close(moebius_normal([0.0, 0.0]).log_prob(GRID), wrapped.log_prob(GRID))


def test_moebius_normal_covers_a_barrier_that_a_wrapped_normal_misses():
    """A von Mises density of κ = 2.5: the best wrapped normal has weights above 20."""
    target = dist.VonMises(tensor(0.0), tensor(2.5)).log_prob(GRID)

    def largest_weight(d):
        return (target - d.log_prob(GRID)).max().exp().item()

    scales = torch.linspace(0.4, 1.6, 49, dtype=torch.float64)
    radii = torch.linspace(0.0, 0.6, 25, dtype=torch.float64)

    def divergence(d):
        return ((d.log_prob(GRID) - target) * d.log_prob(GRID).exp()).mean().item()

    narrow = min((WrappedNormal(tensor(0.0), s) for s in scales), key=divergence)
    carried = min(
        (MoebiusNormal(tensor(0.0), s, torch.stack([-r, 0 * r])) for s in scales for r in radii),
        key=divergence,
    )
    assert largest_weight(narrow) > 20
    assert largest_weight(carried) < 2


def test_moebius_normal_gradients():
    torch.manual_seed(0)
    x = torch.rand(4, dtype=torch.float64) * 6 - 3
    inputs = [tensor(v).requires_grad_() for v in (0.4, 0.8, [-0.3, 0.2])]
    assert torch.autograd.gradcheck(lambda *a: MoebiusNormal(*a).log_prob(x), inputs)
    x = MoebiusNormal(*inputs).rsample((10,))
    assert all(bool(g.isfinite().all()) for g in torch.autograd.grad(x.sum(), inputs))


def test_moebius_normal_expands_and_checks_its_parameter():
    d = MoebiusNormal(torch.zeros(3), torch.ones(3), torch.zeros(3, 2)).expand([5, 3])
    assert d.batch_shape == d.sample().shape == d.log_prob(d.sample()).shape == (5, 3)
    with pytest.raises(ValueError, match="unit disc"):
        MoebiusNormal(torch.zeros(1), torch.ones(1), torch.ones(1, 2), validate_args=True)


# MixedNormal


def mixed():
    loc = torch.tensor([[1.0, 3.0, -2.0], [0.0, 0.0, 0.5]], dtype=torch.float64)
    scale = torch.tensor([[0.5, 0.7, 1.1], [2.0, 2.5, 0.1]], dtype=torch.float64)
    return MixedNormal(loc, scale, torch.tensor([False, True, False]))


def test_mixed_normal_is_the_product_of_its_parts():
    torch.manual_seed(0)
    d = mixed()
    u = d.sample((7,))
    normal = dist.Normal(d.loc, d.scale).log_prob(u)
    wrapped = WrappedNormal(d.loc, d.scale).log_prob(u)
    expected = torch.where(d.circular, wrapped, normal).sum(-1)
    torch.testing.assert_close(d.log_prob(u), expected)
    assert d.log_prob(u).shape == (7, 2)


def test_mixed_normal_wraps_only_circular_coordinates():
    torch.manual_seed(0)
    circular = torch.tensor([False, True])
    d = MixedNormal(torch.full((2,), 10.0), torch.ones(2), circular)
    u = d.sample((5000,))
    assert u[:, 0].mean().item() == pytest.approx(10.0, abs=0.06)
    assert bool((u[:, 1].abs() <= math.pi).all())
    turn = torch.tensor([0.0, TWO_PI])
    torch.testing.assert_close(d.log_prob(u + turn), d.log_prob(u), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("mask", [[True, True], [False, False]])
def test_mixed_normal_of_one_kind_only(mask):
    d = MixedNormal(torch.zeros(2), torch.ones(2), torch.tensor(mask))
    assert torch.isfinite(d.log_prob(d.rsample((3,)))).all()


def test_mixed_normal_refuses_a_scale_that_is_no_density_on_the_circle():
    circular = torch.tensor([False, True])
    MixedNormal(torch.zeros(2), torch.tensor([9.0, 4.0]), circular)
    with pytest.raises(ValueError, match="at most 4 rad where coordinates are circular, got 5"):
        MixedNormal(torch.zeros(2), torch.tensor([1.0, 5.0]), circular)


def test_mixed_normal_expands_in_a_plate_with_validation():
    def program():
        with pyro.plate("samples", 4):
            circular = torch.tensor([True, False])
            return pyro.sample("u", MixedNormal(torch.zeros(2), torch.ones(2), circular))

    with pyro.validation_enabled(True):
        trace = poutine.trace(program).get_trace()
        trace.compute_log_prob()
    assert trace.nodes["u"]["value"].shape == (4, 2)
    assert trace.nodes["u"]["log_prob"].shape == (4,)


def test_mixed_normal_refuses_a_mask_of_another_length():
    with pytest.raises(ValueError, match=r"expected a mask of shape \(2,\), got \(3,\)"):
        MixedNormal(torch.zeros(2), torch.ones(2), torch.ones(3, dtype=torch.bool))


def test_mixed_normal_refuses_negative_scales():
    with pytest.raises(ValueError, match="scale"):
        MixedNormal(torch.zeros(2), -torch.ones(2), torch.tensor([True, False]), validate_args=True)


# StratifiedCategorical

PROBS = torch.tensor([0.07, 0.5, 0.2, 0.23])


@pytest.mark.parametrize("n", [1, 7, 10, 1001])
def test_strata_hold_the_floor_or_ceiling_of_their_share(n):
    torch.manual_seed(0)
    for _ in range(20):
        draws = StratifiedCategorical(PROBS).expand([n]).sample()
        counts = torch.bincount(draws, minlength=4)
        assert bool((counts >= torch.floor(n * PROBS.double() - 1e-6)).all())
        assert bool((counts <= torch.ceil(n * PROBS.double() + 1e-6)).all())


def test_every_element_has_the_marginal_distribution():
    torch.manual_seed(0)
    d = StratifiedCategorical(PROBS).expand([3])
    draws = torch.stack([d.sample() for _ in range(8000)])
    for position in range(3):
        frequency = torch.bincount(draws[:, position], minlength=4) / 8000
        torch.testing.assert_close(frequency, PROBS, atol=0.02, rtol=0)


def test_strata_are_exact_in_large_batches():
    """Offsets need more digits than float32 has: share 1e-5 of 1e6 is 10, never 9 or 11."""
    probs = torch.tensor([1e-5, 1 - 1e-5], dtype=torch.float64)
    torch.manual_seed(0)
    counts = {
        int((StratifiedCategorical(probs).expand([1_000_000]).sample() == 0).sum())
        for _ in range(5)
    }
    assert counts <= {10, 11}


def test_a_share_of_zero_is_never_drawn():
    draws = StratifiedCategorical(torch.tensor([0.0, 1.0, 0.0])).expand([500]).sample()
    assert bool((draws == 1).all())


def test_stratified_log_prob_is_that_of_the_categorical():
    d = StratifiedCategorical(PROBS).expand([4])
    value = torch.tensor([0, 3, 1, 1])
    torch.testing.assert_close(d.log_prob(value), dist.Categorical(PROBS).log_prob(value))
    assert d.log_prob(torch.tensor(2)).shape == (4,)


def test_stratified_enumerates_its_support():
    d = StratifiedCategorical(PROBS).expand([5])
    assert d.enumerate_support().shape == (4, 5)
    assert d.enumerate_support(expand=False).shape == (4, 1)
    assert d.log_prob(d.enumerate_support()).exp().sum(0).tolist() == pytest.approx([1.0] * 5)


def test_stratified_in_a_plate_is_stratified_over_the_plate():
    def program():
        with pyro.plate("samples", 100):
            return pyro.sample("k", StratifiedCategorical(torch.tensor([0.25, 0.75])))

    with pyro.validation_enabled(True):
        trace = poutine.trace(program).get_trace()
        trace.compute_log_prob()
    assert trace.nodes["k"]["value"].sum() == 75
    assert trace.nodes["k"]["log_prob"].shape == (100,)


def test_stratified_checks_arguments_and_values():
    with pytest.raises(ValueError, match="probs"):
        StratifiedCategorical(torch.tensor([0.5, 0.6]), validate_args=True)
    with pytest.raises(
        ValueError, match=r"expected probs of shape \(n_components,\), got \(2, 2\)"
    ):
        StratifiedCategorical(torch.full((2, 2), 0.5))
    with pytest.raises(ValueError, match="support"):
        StratifiedCategorical(PROBS, validate_args=True).log_prob(torch.tensor(4))
