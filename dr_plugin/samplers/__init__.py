"""Samplers: which images make the next batch. Each is a torch `BatchSampler` over a data set's indices."""

from dr_plugin.samplers.offline import OfflineTripletSampler
from dr_plugin.samplers.reservoir import ReservoirTripletSampler
from dr_plugin.samplers.uniform import UniformTripletSampler

__all__ = ["OfflineTripletSampler", "ReservoirTripletSampler", "UniformTripletSampler"]
