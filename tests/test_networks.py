import math

import pytest
import torch
from torch import nn

from pyrocg.networks import (
    MLP,
    CircularFeatures,
    ConstantOutput,
    constant_or_mlp,
    last_layers,
    with_state,
)


def test_mlp_is_the_formula():
    torch.manual_seed(0)
    mlp = MLP(3, (4,), 2, nn.Tanh)
    first, _, last = mlp.layers
    x = torch.randn(5, 6, 3)
    expected = (x @ first.weight.T + first.bias).tanh() @ last.weight.T + last.bias
    torch.testing.assert_close(mlp(x), expected)


def test_mlp_takes_one_activation_per_layer():
    kinds = [type(layer) for layer in MLP(1, (2, 3), 1, (nn.SELU, nn.Tanh)).layers]
    assert kinds == [nn.Linear, nn.SELU, nn.Linear, nn.Tanh, nn.Linear]
    with pytest.raises(ValueError, match="expected one activation or 2 of them"):
        MLP(1, (2, 3), 1, (nn.SELU,))


def test_mlp_without_hidden_layers_is_linear():
    assert len(MLP(3, (), 2).layers) == 1


def test_zero_output_still_learns():
    mlp = MLP(2, (8,), 1, zero_output=True)
    mlp(torch.ones(3, 2)).sum().backward()
    assert mlp.layers[-1].weight.grad.abs().sum() > 0


def test_circular_features_are_periodic_and_keep_the_reals():
    features = CircularFeatures(torch.tensor([False, True, False]))
    u = torch.randn(4, 3, dtype=torch.float64)
    shifted = u + torch.tensor([0.0, 2 * math.pi, 0.0], dtype=torch.float64)
    out = features(u)
    assert out.shape == (4, features.n_features) == (4, 4)
    torch.testing.assert_close(features(shifted), out)
    expected = [u[:, 1].cos(), u[:, 1].sin(), u[:, 0], u[:, 2]]
    torch.testing.assert_close(out, torch.stack(expected, -1))


def test_constant_output_ignores_its_input():
    out = ConstantOutput(3)
    nn.init.normal_(out.value)
    torch.testing.assert_close(out(torch.randn(2, 5, 7)), out.value.expand(2, 5, 3))


@pytest.mark.parametrize("kind", ["constant", "network"])
def test_constant_or_mlp_starts_at_zero(kind):
    assert constant_or_mlp(kind, 2, (4,), 3, nn.Tanh)(torch.randn(5, 2)).abs().max() == 0.0


def test_constant_or_mlp_refuses_other_words():
    with pytest.raises(ValueError, match='expected "constant" or "network", got \'both\''):
        constant_or_mlp("both", 1, (), 1, nn.Tanh)


def test_with_state_puts_values_in_and_takes_them_out_again_also_after_errors():
    module = nn.Sequential(nn.Linear(2, 1), nn.BatchNorm1d(1))
    before = {name: value.clone() for name, value in module.state_dict().items()}
    places = [p.data_ptr() for p in module.parameters()]
    draw = {"0.weight": torch.tensor([[3.0, 4.0]]), "1.running_mean": torch.tensor([5.0])}

    def use():
        with with_state(module, draw) as same:
            assert same is module
            assert module[0].weight.tolist() == [[3.0, 4.0]]
            assert module[1].running_mean.item() == 5.0
            assert torch.equal(module[0].bias, before["0.bias"])
            raise RuntimeError("on the way")

    with pytest.raises(RuntimeError, match="on the way"):
        use()
    after = module.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert places == [p.data_ptr() for p in module.parameters()]


def test_with_state_nests():
    linear = nn.Linear(1, 1)
    with with_state(linear, {"bias": torch.ones(1)}):
        with with_state(linear, {"bias": torch.zeros(1)}):
            assert linear.bias.item() == 0.0
        assert linear.bias.item() == 1.0


@pytest.mark.parametrize(
    ("state", "error", "message"),
    [
        ({"wieght": torch.ones(1)}, KeyError, "expected names of Linear's state, got 'wieght'"),
        ({"bias": torch.ones(2)}, ValueError, r"expected bias of shape \(1,\), got \(2,\)"),
    ],
)
def test_with_state_refuses_what_does_not_fit(state, error, message):
    with pytest.raises(error, match=message), with_state(nn.Linear(1, 1), state):
        pass


def test_last_layers():
    pair = nn.ModuleDict({"a": MLP(1, (4,), 2), "b": MLP(1, (4, 4), 2)})
    assert last_layers(pair) == tuple(
        f"{name}.layers.{i}.{part}"
        for name, i in (("a", 2), ("b", 4))
        for part in ("weight", "bias")
    )
    activated = nn.Sequential(nn.Linear(1, 1), nn.Linear(1, 1), nn.Tanh())
    assert last_layers(activated) == ("1.weight", "1.bias")
    assert last_layers(nn.Linear(1, 1)) == ("weight", "bias")
