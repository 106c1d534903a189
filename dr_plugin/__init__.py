"""Deep Ranking (Wang et al., CVPR 2014) as a plugin for pytorch-metric-learning.

Each component lives in a family of its own and is imported from there, for example
``from dr_plugin.miners import UniformTripletMiner``; importing this package alone loads nothing heavy.
"""

__version__ = "0.1.0"
