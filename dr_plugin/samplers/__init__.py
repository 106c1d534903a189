"""Samplers: which images make the next batch. Each is a torch `BatchSampler` over a data set's indices."""

from dr_plugin.samplers.distributed import DistributedBatchSampler
from dr_plugin.samplers.offline import OfflineTripletSampler
from dr_plugin.samplers.reservoir import ReservoirTripletSampler
from dr_plugin.samplers.uniform import UniformTripletSampler

__all__ = [
    "DistributedBatchSampler",
    "OfflineTripletSampler",
    "ReservoirTripletSampler",
    "UniformTripletSampler",
]
