"""Weighted reservoirs over a stream: bounded samples, and exact draws in proportion to weight. numpy only."""

from dr_plugin.reservoirs.classes import ClassReservoirs
from dr_plugin.reservoirs.weighted import WeightedReservoir

__all__ = ["ClassReservoirs", "WeightedReservoir"]
