"""Layer types that differ between two and three spatial axes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

import torch.nn.functional as F
from torch import Tensor, nn

CONVOLUTIONS: Mapping[int, type[nn.Conv2d] | type[nn.Conv3d]] = MappingProxyType({2: nn.Conv2d, 3: nn.Conv3d})
CONVOLVE: Mapping[int, Callable[..., Tensor]] = MappingProxyType({2: F.conv2d, 3: F.conv3d})
UPSAMPLING: Mapping[int, str] = MappingProxyType({2: "bilinear", 3: "trilinear"})  # modes of linear interpolation
