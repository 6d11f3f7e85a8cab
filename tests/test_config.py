import tomllib

import pytest

from pyrocg.config import read_toml, resolve, to_toml
from pyrocg.option import parse
from pyrocg.sections import SECTIONS, SYSTEMS, options
from pyrocg.system import build_model, build_schedule, build_system

WELL = {"system": {"kind": "double-well"}}
ALANINE = {"system": {"kind": "alanine-dipeptide"}}
GIVEN = {
    "double-well": WELL,
    "alanine-dipeptide": ALANINE,
    "pdb": {"system": {"pdb": "some.pdb"}},
    "peptide": {"system": {"peptide": "AAA"}},
}


@pytest.mark.parametrize("system", SYSTEMS)
@pytest.mark.parametrize("model", ["basins", "gaussian"])
@pytest.mark.parametrize("schedule", ["fixed", "linear", "geometric", "adaptive", "relative"])
@pytest.mark.parametrize("posterior", ["none", "laplace", "swag"])
def test_toml_resolves_to_itself(system: str, model: str, schedule: str, posterior: str) -> None:
    given = GIVEN[system] | {"model": {"kind": model}, "schedule": {"kind": schedule}}
    given["posterior"] = {"kind": posterior}
    config = resolve(given)
    assert resolve(tomllib.loads(to_toml(config))) == config
    assert config.system.kind == system


def test_floats_survive_toml_to_the_last_bit() -> None:
    config = resolve(WELL, {"fit": {"learning_rate": 0.1 + 0.2}})
    assert resolve(tomllib.loads(to_toml(config))).fit.learning_rate == 0.1 + 0.2


def test_the_first_layer_is_the_strongest() -> None:
    line, file = {"fit": {"steps": 7}}, {"fit": {"steps": 8, "seed": 3}, **WELL}
    config = resolve(line, file)
    assert (config.fit.steps, config.fit.seed, config.fit.num_samples) == (7, 3, 256)


def test_presets_belong_to_the_system() -> None:
    assert resolve(WELL).model.latent_dim == 1
    assert resolve(WELL).coordinates.kind == "identity"
    assert resolve(ALANINE).model.latent_dim == 2
    assert resolve(ALANINE).system.temperature == 330.0
    assert resolve(GIVEN["pdb"]).system.temperature == 300.0


def test_what_does_not_apply_is_none() -> None:
    config = resolve(WELL, {"model": {"kind": "gaussian"}})
    assert config.model.share is None
    assert config.system.temperature is None
    assert config.schedule.start is None


def test_integers_are_taken_for_numbers() -> None:
    assert resolve(ALANINE, {"system": {"temperature": 300}}).system.temperature == 300.0


REFUSED = {
    "unknown section": ({"fitt": {}}, r"\[fitt\].*did you mean \[fit\]"),
    "unknown key": ({"fit": {"step": 1}}, r"fit\.step: .*did you mean fit\.steps"),
    "no table": ({"fit": 3}, r"fit: expected a table \[fit\], got 3"),
    "too small": ({"fit": {"steps": 0}}, r"fit\.steps: expected an integer of at least 1, got 0"),
    "text": ({"fit": {"steps": "x"}}, r"fit\.steps: expected an integer.*, got 'x'"),
    "bool for int": ({"fit": {"steps": True}}, r"fit\.steps: .*got True"),
    "float for int": ({"fit": {"steps": 1.5}}, r"fit\.steps: .*got 1\.5"),
    "int for bool": ({"run": {"save_samples": 1}}, r"run\.save_samples: expected true or false"),
    "nan": ({"fit": {"learning_rate": float("nan")}}, r"fit\.learning_rate: .*got nan"),
    "infinite": ({"fit": {"learning_rate": float("inf")}}, r"fit\.learning_rate: .*got inf"),
    "minus infinity": (
        {"system": {"kind": "peptide", "peptide": "A", "energy_cap": -float("inf")}},
        r"system\.energy_cap: expected a number above 0 \(inf: never\), got -inf",
    ),
    "exclusive": ({"predict": {"level": 1.0}}, r"predict\.level: .*above 0 and below 1, got 1\.0"),
    "one draw": ({"predict": {"n_draws": 1}}, r"predict\.n_draws: .*of at least 2, got 1"),
    "basins of another": (
        {"model": {"kind": "gaussian", "max_basins": 8}},
        r"model\.max_basins: expected only with model\.kind basins",
    ),
    "no list": ({"model": {"hidden": 64}}, r"model\.hidden: expected a list.*got 64"),
    "empty list": ({"model": {"hidden": []}}, r"model\.hidden: expected a list"),
    "bad item": ({"model": {"hidden": [64, 0]}}, r"model\.hidden: .*got \[64, 0\]"),
    "choice": ({"schedule": {"kind": "slow"}}, r"expected one of fixed, linear.*got 'slow'"),
    "another system's": ({"system": {"temperature": 3.0}}, r"expected only with system\.kind alan"),
    "another model's": (
        {"model": {"kind": "gaussian", "share": 0.5}},
        r"model\.share: expected only with model\.kind basins, got it with gaussian",
    ),
    "another schedule's": ({"schedule": {"until": 0.5}}, r"schedule\.until: expected only with"),
    "another posterior's": (
        {"posterior": {"kind": "swag", "structure": "full"}},
        r"posterior\.structure: expected only with posterior\.kind laplace, got it with swag",
    ),
    "more draws than samples": (
        {"posterior": {"kind": "swag", "weight_draws": 9}, "predict": {"num_samples": 8}},
        r"posterior\.weight_draws: expected at most 8",
    ),
    "device": ({"run": {"device": "tpu"}}, r"run\.device: expected one of cpu, cuda, got 'tpu'"),
    "coordinates": ({"coordinates": {"kind": "internal"}}, r"expected identity for double-well"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case: str) -> None:
    given, message = REFUSED[case]
    with pytest.raises(ValueError, match=message):
        resolve(given, WELL)


def test_refused_for_molecules() -> None:
    with pytest.raises(ValueError, match=r"system\.kind: expected double-well.*got none"):
        resolve({})
    with pytest.raises(ValueError, match=r"system\.pdb: expected a value"):
        resolve({"system": {"kind": "pdb"}})
    with pytest.raises(ValueError, match=r"coordinates\.kind: expected internal or cartesian"):
        resolve(ALANINE, {"coordinates": {"kind": "identity"}})
    with pytest.raises(ValueError, match=r"system\.engine: expected openmm"):
        resolve(ALANINE, {"system": {"platform": "CPU"}})


def test_the_adaptive_schedule_needs_evaluations() -> None:
    with pytest.raises(ValueError, match=r"fit\.evaluate_every"):
        resolve(WELL, {"schedule": {"kind": "adaptive"}, "fit": {"steps": 150}})


def test_parse_words() -> None:
    assert parse(options("model")["hidden"], ["8", "16"]) == (8, 16)
    assert parse(options("fit")["learning_rate"], ["1e-3"]) == 1e-3
    assert parse(options("system")["pdb"], ["3.pdb"]) == "3.pdb"
    with pytest.raises(ValueError, match=r"fit\.steps: expected an integer.*got '1e3'"):
        parse(options("fit")["steps"], ["1e3"])


def test_infinity_where_it_means_something() -> None:
    given = {"system": {"kind": "peptide", "peptide": "A", "energy_cap": float("inf")}}
    config = resolve(given)
    assert config.system.energy_cap == float("inf")
    assert resolve(tomllib.loads(to_toml(config))) == config
    assert parse(options("system")["energy_cap"], ["inf"]) == float("inf")


def test_flags_are_unique() -> None:
    flags = [
        o.flag for s in SECTIONS for o in options(s).values() if (s, o.key) != ("system", "kind")
    ]
    assert len(flags) == len(set(flags))


def test_read_toml_refuses_what_is_none(tmp_path) -> None:
    with pytest.raises(FileNotFoundError, match="no such file"):
        read_toml(tmp_path / "none.toml")
    for content in (b"steps = ", b"\xff\xfe"):
        (tmp_path / "bad.toml").write_bytes(content)
        with pytest.raises(ValueError, match="expected TOML"):
            read_toml(tmp_path / "bad.toml")


def test_the_papers_networks_and_tempering_rule_are_options() -> None:
    config = resolve({**WELL, "model": {"kind": "paper"}, "schedule": {"kind": "relative"}})
    assert (config.model.latent_dim, config.model.hidden) == (1, None)
    schedule = build_schedule(config.schedule)
    assert (schedule.max_relative_increase, schedule.max_kl_increase) == (1.0, None)
    model = build_model(config, build_system(config), None)
    widths = [m.out_features for m in model.encoder.mean.modules() if hasattr(m, "out_features")]
    assert widths == [100, 100, 100, 1]


def test_the_papers_networks_are_refused_for_other_systems() -> None:
    with pytest.raises(ValueError, match=r"model\.kind: expected basins or gaussian"):
        resolve({"system": {"kind": "peptide", "peptide": "AA"}, "model": {"kind": "paper"}})
