"""Fleets: draws are pure functions of seed and name, shares and medians those that are stated, tables as given."""

from __future__ import annotations

import numpy as np
import pytest

from plures.errors import PluresError
from plures.hardware import DAY, FleetTable, Hospitals, Phones, Sensors
from plures.hardware.named import radio
from problems import close

NAMES = [f"client {i}" for i in range(4000)]


def test_a_device_depends_on_the_seed_and_the_name_alone():
    whole, some = Phones(3).fleet(NAMES, {}), Phones(3).fleet(NAMES[70:90], {})
    for field in ("speed", "up", "down", "opens", "stays", "failure"):
        assert (getattr(whole, field)[70:90] == getattr(some, field)).all()
        assert (getattr(Phones(4).fleet(NAMES[:50], {}), field) != getattr(whole, field)[:50]).any()
    assert whole.kinds[70:90] == some.kinds


@pytest.mark.parametrize("rule", [Phones(), Hospitals(), Sensors()])
def test_classes_have_their_shares(rule):
    kinds = rule.fleet(NAMES, {}).kinds
    for one in rule.CLASSES:
        count = kinds.count(one.name)
        assert abs(count - one.share * len(NAMES)) < 4.5 * (one.share * (1 - one.share) * len(NAMES)) ** 0.5


def test_phones_have_the_published_medians_and_ranges():
    fleet = Phones(1).fleet(NAMES, {})
    assert np.median(fleet.down) == pytest.approx(13e6 / 8, rel=0.05)
    assert np.median(fleet.up) == pytest.approx(6e6 / 8, rel=0.05)
    low, high = np.quantile(fleet.up, (0.05, 0.95))
    assert high / low == pytest.approx(10, rel=0.1)
    assert fleet.failure.min() >= 0.06
    assert fleet.failure.max() <= 0.1
    assert fleet.stays.min() >= 4 * 3600
    assert fleet.stays.max() <= 10 * 3600
    middle = fleet.kinds.index("middle")
    assert fleet.speed[middle] == close(8e9)
    assert fleet.compute_energy[middle] == close(5.6 / 8e9)


def test_energy_of_a_radio():
    """At 6 Mbit/s 438.39 mW per Mbit/s and 1288.04 mW are 3.91838 W, and a byte takes 8 / 6e6 seconds."""
    assert radio(438.39, 1288.04, 6) == pytest.approx(3.91838 * 8 / 6e6)


def test_hours_of_a_device():
    rows = {"a": {"gflops": 1, "up_mbit": 1, "down_mbit": 1, "opens_hour": 22, "open_hours": 4}}
    fleet = FleetTable(rows).fleet(["a"], {})
    hours = [0, 1.5, 2, 21, 22, 23, 24 + 3]
    assert [float(fleet.waits(3600 * hour)[0]) / 3600 for hour in hours] == close([0, 0, 20, 1, 0, 0, 19])
    assert [float(fleet.leaves(3600 * hour)[0]) / 3600 for hour in (22, 23, 25.5)] == close([4, 3, 0.5])


def test_metadata_are_a_table(tmp_path):
    metadata = {"gflops": [2.0, 3.0], "up_mbit": [8, 16], "down_mbit": [8, 8], "device": ["old", "new"]}
    fleet = FleetTable().fleet(["a", "b"], metadata)
    file = tmp_path / "fleet.csv"
    file.write_text("client,gflops,up_mbit,down_mbit,device\nb,3,16,8,new\na,2,8,8,old\n")
    read = FleetTable.read(file).fleet(["a", "b"], {})
    assert read == fleet
    assert fleet.kinds == ("old", "new")
    assert fleet.up.tolist() == [1e6, 2e6]
    assert fleet.stays.tolist() == [DAY, DAY]
    assert np.isinf(fleet.memory).all()


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("client,gflop\na,1\n", "unknown column 'gflop'.*gflops"),
        ("name,gflops\na,1\n", "no column 'client'"),
        ("client,gflops\na,1\na,2\n", "client 'a' has two rows"),
    ],
)
def test_faults_of_a_table_are_named(tmp_path, text, why):
    file = tmp_path / "fleet.csv"
    file.write_text(text)
    with pytest.raises(PluresError, match=why):
        FleetTable.read(file)
    with pytest.raises(PluresError, match="cannot be read"):
        FleetTable.read(tmp_path / "none.csv")
