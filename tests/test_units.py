import math

import openmm.unit as unit
import pytest

from pyrocg.units import GAS_CONSTANT, in_units, thermal_energy


def test_gas_constant_is_that_of_openmm():
    openmm_value = unit.MOLAR_GAS_CONSTANT_R.value_in_unit(unit.kilojoule_per_mole / unit.kelvin)
    assert pytest.approx(openmm_value, rel=1e-7) == GAS_CONSTANT


def test_gas_constant_is_boltzmann_times_avogadro():
    assert pytest.approx(1.380649e-23 * 6.02214076e23 / 1000, rel=1e-15) == GAS_CONSTANT


def test_thermal_energy_at_330_kelvin():
    assert thermal_energy(330.0) == pytest.approx(2.743773, abs=1e-6)


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.inf, math.nan])
def test_thermal_energy_refuses(temperature):
    with pytest.raises(ValueError, match="expected a temperature in K above 0"):
        thermal_energy(temperature)


def test_in_units_converts_quantities_and_keeps_bare_values():
    assert in_units(1.0 * unit.kilocalorie_per_mole, unit.kilojoule_per_mole) == 4.184
    assert in_units(5.0, unit.nanometer) == 5.0
    assert in_units([1.0, 2.0] * unit.angstrom, unit.nanometer) == pytest.approx([0.1, 0.2])
