"""The clients' devices in a simulation: speed, memory, network, energy, hours and failure."""

from plures.hardware.fleet import DAY, FLEETS, Fleet, FleetRule
from plures.hardware.named import NAMED, Hospitals, Phones, Sensors
from plures.hardware.table import FleetTable

__all__ = ["DAY", "FLEETS", "NAMED", "Fleet", "FleetRule", "FleetTable", "Hospitals", "Phones", "Sensors"]
