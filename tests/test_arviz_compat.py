"""Needs neither torch nor pyrocg, so that it runs with every ArviZ: the module is read alone."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest

PATH = Path(__file__).parents[1] / "pyrocg" / "arviz_compat.py"


@pytest.fixture(scope="module")
def compat():
    spec = importlib.util.spec_from_file_location("arviz_compat_alone", PATH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def pareto_log_weights(k, n=20_000):
    """Logarithms of Pareto variables with tail index 1/k, whose k-hat is k."""
    return -k * np.log(np.random.default_rng(0).uniform(size=n))


@pytest.mark.parametrize("k", [0.3, 0.8])
def test_k_hat_is_the_tail_of_the_weights(compat, k):
    assert compat.pareto_smooth(pareto_log_weights(k))[1] == pytest.approx(k, abs=0.1)


def test_k_hat_is_of_the_weights_not_of_their_inverse(compat):
    log_w = pareto_log_weights(0.8)
    assert compat.pareto_smooth(-log_w)[1] < 0.2 < compat.pareto_smooth(log_w)[1]


def test_smoothing_keeps_the_order_and_most_weights(compat):
    log_w = pareto_log_weights(0.5, 2000)
    smoothed, _ = compat.pareto_smooth(log_w)
    ranks = smoothed[np.argsort(log_w)]
    assert np.all(np.diff(ranks) >= -1e-12)
    body = np.argsort(log_w)[:1500]
    difference = (smoothed - log_w)[body]
    assert np.ptp(difference) < 1e-8


def test_weight_zero_stays_zero(compat):
    log_w = np.concatenate([pareto_log_weights(0.3, 500), [-np.inf, -np.inf]])
    smoothed, k = compat.pareto_smooth(log_w)
    assert np.isneginf(smoothed[-2:]).all()
    assert np.isfinite(smoothed[:-2]).all()
    assert np.isfinite(k)


def test_equal_and_few_weights(compat):
    smoothed, k = compat.pareto_smooth(np.full(100, -1e4))
    assert k == -np.inf
    assert np.ptp(smoothed) == 0
    smoothed, k = compat.pareto_smooth(np.arange(10.0))
    assert k == np.inf
    assert smoothed.tolist() == list(range(10))


def test_container_holds_groups_and_attributes(compat):
    draws = np.random.default_rng(0).normal(size=(1, 100))
    data = compat.inference_data(
        {"posterior": {"x": draws}, "sample_stats": {"energy": 2 * draws}}, {"log_z": 3.0}
    )
    assert data["posterior"].attrs["log_z"] == 3.0
    np.testing.assert_array_equal(data["posterior"]["x"].values, draws)
    np.testing.assert_array_equal(data["sample_stats"]["energy"].values, 2 * draws)


def test_container_is_summarised_by_arviz(compat):
    arviz = compat._arviz()
    draws = np.random.default_rng(0).normal(5.0, size=(1, 4000))
    data = compat.inference_data({"posterior": {"x": draws}}, {})
    assert float(arviz.summary(data, kind="stats")["mean"].iloc[0]) == pytest.approx(5.0, abs=0.1)
