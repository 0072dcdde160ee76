"""CMAformer, 2D and 3D; plans.json names its network by this package."""

from nnunet_collab.networks.cmaformer.network import CMAformer

__all__ = ["CMAformer"]
