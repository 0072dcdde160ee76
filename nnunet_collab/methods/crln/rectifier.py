r"""Rectified pseudo labels of CRLN: combine a prediction and the relationship map of the prototypes.

Equation 8 adds :math:`(1 - \mu) M` to the prediction `y`. The paper does not say in which space. The readings, with
logits `z`:

- `logit` (default): :math:`\mathrm{softmax}(z + (1 - \mu) M)`. M is real-valued and is trained like logits. Agreement
  raises the confidence, as in figure 1, and the gradient of mu can have either sign.
- `probability`: :math:`(\mathrm{softmax}(z) + (1 - \mu) \mathrm{softmax}(M)) / (2 - \mu)`, a convex combination.
- `probability_raw`: as printed, without the division, for comparison. The values of a voxel sum to 2 - mu. With two
  classes, one always has at least (2 - mu) / 2, so every voxel passes a lower threshold. A smaller mu also raises the
  value of the true class, so the cross-entropy never increases mu.

All return log-probabilities, which every loss of pseudo labels accepts as logits. `probability_raw` returns those of
`probability`; `Rectifier.mass` gives the factor by which its values are larger.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

Space = Literal["logit", "probability", "probability_raw"]
Kind = Literal["fixed", "concatenation", "learnable"]


def rectify_prediction(logits: Tensor, relations: Tensor, mu: Tensor | float, *, space: Space) -> Tensor:
    """Log-probabilities of the prediction that equation 8 rectifies, `(B, C, *S)`, float32 at least.

    Args:
        logits: Logits of a network, `(B, C, *S)`.
        relations: Relationship map, `(B, C, *S)`, of `networks.interaction.DynamicInteraction`.
        mu: Weight in [0, 1]; 1 leaves the prediction unchanged. A tensor may require a gradient.
        space: See the module's docstring.
    """
    with torch.autocast(logits.device.type, enabled=False):
        dtype = torch.promote_types(logits.dtype, torch.float32)
        z, m = logits.to(dtype), relations.to(dtype)
        if space == "logit":
            return (z + (1 - mu) * m).log_softmax(dim=1)
        y, s = z.log_softmax(dim=1).exp(), m.log_softmax(dim=1).exp()
        mixed = (y + (1 - mu) * s) / (2 - mu)
        # If both underflow, the logarithm is of 0. The smallest normal number keeps the gradient finite.
        return mixed.clamp_min(torch.finfo(dtype).tiny).log()


def replace_prediction(logits: Tensor, relations: Tensor, *, tau: float) -> Tensor:
    """Log-probabilities `(B, C, *S)`: of M where the prediction is less sure than tau and M, else of the prediction.

    Equation 17, rectification v1. Arguments as in `rectify_prediction`.
    """
    with torch.autocast(logits.device.type, enabled=False):
        dtype = torch.promote_types(logits.dtype, torch.float32)
        log_y, log_m = logits.to(dtype).log_softmax(dim=1), relations.to(dtype).log_softmax(dim=1)
        sure, other = log_y.amax(dim=1, keepdim=True).exp(), log_m.amax(dim=1, keepdim=True).exp()
        return torch.where((sure < tau) & (sure < other), log_m, log_y)


class Rectifier(nn.Module):
    """The three rectifications (equations 8, 16, 17; table 7): v1 `fixed`, v2 `concatenation`, v3 `learnable` mu.

    Args:
        kind: `fixed`: equation 17, nothing to learn. `concatenation`: a convolution, 3 voxels wide, of the predicted
            probabilities and the map together. `learnable`: equation 8 with mu = sigmoid of a parameter that starts
            at 0.
        space: Space of `learnable`.
        tau: Threshold of `fixed`.
        num_classes: Number of classes `C`.
        dims: 2 or 3.
    """

    def __init__(self, kind: Kind, *, space: Space, tau: float, num_classes: int, dims: int) -> None:
        super().__init__()
        self.kind = kind
        self.space = space
        self.tau = tau
        if kind == "learnable":
            self.raw = nn.Parameter(torch.zeros(()))
        if kind == "concatenation":
            self.mix = (nn.Conv2d if dims == 2 else nn.Conv3d)(2 * num_classes, num_classes, 3, padding=1)

    @property
    def mu(self) -> Tensor:
        """Mu in (0, 1); 0 if it is not learned."""
        return self.raw.sigmoid() if self.kind == "learnable" else torch.zeros(())

    @property
    def mass(self) -> Tensor:
        """Sum of the values of one voxel: 1, or 2 - mu in the space `probability_raw`."""
        raw = self.kind == "learnable" and self.space == "probability_raw"
        return 2 - self.mu if raw else torch.ones(())

    def forward(self, logits: Tensor, relations: Tensor) -> Tensor:
        """Log-probabilities `(B, C, *S)` of the rectified prediction."""
        if self.kind == "concatenation":
            with torch.autocast(logits.device.type, enabled=False):
                both = torch.cat([logits.float().softmax(dim=1), relations.float()], dim=1)
                return self.mix(both).log_softmax(dim=1)  # type: ignore[no-any-return]
        if self.kind == "fixed":
            return replace_prediction(logits, relations, tau=self.tau)
        return rectify_prediction(logits, relations, self.mu, space=self.space)
