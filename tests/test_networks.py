import math

import pytest
import torch
from torch import nn

from pyrocg.networks import MLP, CircularFeatures, ConstantOutput, constant_or_mlp


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
