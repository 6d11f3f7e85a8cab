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


# The container


def weighted():
    """Normal values in two chains, whose weights move the mean to 0.5; latents of two shapes."""
    random = np.random.default_rng(0)
    x = random.normal(size=6000)
    variables = {"x": x, "phi": np.arctan2(x, 1.0), "z": random.normal(size=(6000, 2))}
    variables["h"] = random.normal(size=(6000, 3))
    return variables, {"energy": 2 * x}, np.arange(6000) % 2, np.exp(0.5 * x)


@pytest.fixture
def made(compat):
    variables, statistics, chain, weights = weighted()
    return compat.resampled_chains(
        variables,
        statistics,
        chain,
        weights,
        num_draws=2000,
        units={"x": "nm", "phi": "rad", "energy": "kJ/mol"},
        constants={"beta": 0.4},
        attributes={"log_z": 3.0, "pareto_k": float("-inf")},
        observed={"x": np.random.default_rng(1).normal(0.5, 1.0, 500)},
        seed=0,
    )


def test_groups_dims_units_and_attributes(made):
    posterior, statistics = made["posterior"], made["sample_stats"]
    assert posterior["x"].dims == ("chain", "draw")
    assert posterior["x"].shape == (2, 1000)
    assert posterior["z"].dims == ("chain", "draw", "cv")
    assert posterior["cv"].values.tolist() == ["z1", "z2"]
    assert posterior["h"].dims == ("chain", "draw", "h_dim_0")
    assert (posterior["x"].attrs["units"], posterior["phi"].attrs["units"]) == ("nm", "rad")
    assert statistics["energy"].attrs["units"] == "kJ/mol"
    assert (posterior.attrs["log_z"], posterior.attrs["inference_library"]) == (3.0, "pyrocg")
    assert float(made["constant_data"]["beta"]) == 0.4
    assert made["posterior_predictive"]["x"].shape == (1, 2, 1000)
    assert made["observed_data"]["x"].dims == ("configuration",)


def test_each_chain_is_resampled_from_its_own_samples(made):
    variables, statistics, chain, weights = weighted()
    index = made["sample_stats"]["index"].values
    for c in (0, 1):
        assert np.all(chain[index[c]] == c)
        own = chain == c
        counts = np.bincount(index[c], minlength=6000)[own]
        expected = 1000 * weights[own] / weights[own].sum()
        assert np.all(np.abs(counts - expected) < 1)  # floor or ceil
    np.testing.assert_array_equal(made["posterior"]["x"].values, variables["x"][index])
    np.testing.assert_array_equal(
        made["sample_stats"]["energy"].values, statistics["energy"][index]
    )
    order = made["posterior"]["x"].values[0]
    assert abs(np.corrcoef(order[1:], order[:-1])[0, 1]) < 0.1


@pytest.mark.parametrize(
    ("num_draws", "weights", "message"),
    [(1, 1.0, "num_draws of at least 2, a chain's, got 1"), (20, 0.0, "weight in every chain")],
)
def test_chains_without_draws_or_weight_are_refused(compat, num_draws, weights, message):
    variables, statistics, chain, _ = weighted()
    with pytest.raises(ValueError, match=message):
        compat.resampled_chains(
            variables,
            statistics,
            chain,
            np.where(chain == 0, weights, 1.0),
            num_draws=num_draws,
            units={},
            constants={},
            attributes={},
            observed={},
            seed=0,
        )


def test_arviz_summarises_it(compat, made):
    summary = compat._arviz().summary(made, var_names=["x", "z"], round_to=6)
    assert list(summary.index) == ["x", "z[z1]", "z[z2]"]
    assert float(summary.loc["x", "mean"]) == pytest.approx(0.5, abs=0.1)
    assert float(summary.loc["x", "r_hat"]) < 1.02
    assert float(summary.loc["x", "ess_bulk"]) > 1000


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of Matplotlib, that ArviZ meets
@pytest.mark.filterwarnings("ignore:num_samples")  # of 1.x: there are fewer replicates
def test_arviz_plots_it(compat, made):
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("Agg")
    arviz = compat._arviz()
    if compat._is_legacy(arviz):
        (forest,) = arviz.plot_forest(made, var_names=["x", "z"], combined=True)
        density = arviz.plot_density(made, var_names=["x"])[0, 0]
        check = arviz.plot_ppc(made, var_names=["x"], num_pp_samples=2, random_seed=0)
        assert len(forest.get_yticklabels()) == 3
        assert density.lines
        assert len(check.lines) >= 3  # observed, replicates, their mean
    else:
        options = {"var_names": ["x"], "backend": "matplotlib"}
        forest = arviz.plot_forest(made, **options)
        density = arviz.plot_dist(made, **options)
        check = arviz.plot_ppc_dist(made, **options)
        for found in (forest, density, check):
            assert any(axes.lines for axes in found.viz["figure"].item().axes)
    matplotlib.pyplot.close("all")


def reopened(compat, path):
    """Groups of a file, by xarray alone."""
    import xarray

    return {
        group: xarray.open_dataset(path, group=group, engine="h5netcdf")
        for group in ("posterior", "sample_stats", "observed_data", "posterior_predictive")
    }


def test_it_is_saved_as_netcdf(compat, made, tmp_path):
    path = tmp_path / "prediction.nc"
    made.to_netcdf(str(path), engine="h5netcdf")
    found = reopened(compat, path)
    np.testing.assert_array_equal(found["posterior"]["x"], made["posterior"]["x"])
    assert found["posterior"]["x"].attrs["units"] == "nm"
    assert found["posterior"].attrs["log_z"] == 3.0
    assert found["posterior"]["cv"].values.tolist() == ["z1", "z2"]
    assert found["observed_data"]["x"].shape == (500,)
    back = compat._arviz().from_netcdf(str(path), engine="h5netcdf")
    np.testing.assert_array_equal(back["sample_stats"]["energy"], made["sample_stats"]["energy"])


@pytest.mark.filterwarnings("ignore:Consolidated metadata", "ignore:The data type")  # of Zarr 3
def test_it_is_saved_as_zarr(compat, made, tmp_path):
    """By way of xarray: ArviZ 0.23 itself wants Zarr 2, which the xarray of today refuses."""
    zarr = pytest.importorskip("zarr", minversion="3")
    tree = made.to_datatree() if compat._is_legacy(compat._arviz()) else made
    tree.to_zarr(str(tmp_path / "prediction.zarr"))
    found = zarr.open_group(str(tmp_path / "prediction.zarr"), mode="r")
    np.testing.assert_array_equal(found["posterior/x"][:], made["posterior"]["x"])
    assert found["posterior/x"].attrs["units"] == "nm"
    assert found["posterior"].attrs["log_z"] == 3.0
