"""Miners: which triplets of a batch. They are PML miners, for `mining_funcs={"tuple_miner": ...}`."""

from dr_plugin.miners.quadruplet import HardQuadrupletMiner
from dr_plugin.miners.ranked import RankedNegativeMiner
from dr_plugin.miners.reservoir import ReservoirTripletMiner
from dr_plugin.miners.uniform import UniformTripletMiner

__all__ = ["HardQuadrupletMiner", "RankedNegativeMiner", "ReservoirTripletMiner", "UniformTripletMiner"]
