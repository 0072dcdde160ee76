r"""Consistency of a student's probabilities with a teacher's: Mean Teacher and its uncertainty-aware form.

For the kept voxels :math:`\Omega` and `K` classes, with :math:`d_v = \sum_k (p_{vk} - q_{vk})^2`,

- Mean Teacher (Tarvainen and Valpola 2017, the form of SSL4MIS): :math:`\frac{1}{K |\Omega|} \sum_\Omega d_v`,
- UA-MT (Yu et al. 2019, equation 3): :math:`\frac{1}{K |U|} \sum_U d_v` with :math:`U` the kept voxels where the
  entropy of the teacher's mean probability over several noisy passes is below a threshold. (The published code divides
  by :math:`2 |U|`, which is this for its two classes.)

For region-based labels each region is a two-class problem; its two squared differences are equal, so their mean is
equal to one of them. All arithmetic is float32 whatever autocast says (float64 for float64 logits); the teacher never
receives a gradient. In distributed runs sums and counts are those of all ranks. Where no voxel is used, the loss is 0
with zero gradient. Unit of entropies: nats.
"""

from __future__ import annotations

import torch
from torch import Tensor

from nnunet_collab.core.checks import check_keep, check_mask, check_same_shape
from nnunet_collab.core.distributed import global_mean


def squared_difference(
    student: Tensor, teacher: Tensor, keep: Tensor, *, regions: bool, used: Tensor | None = None
) -> Tensor:
    """Mean squared difference of the probabilities of a student and a teacher.

    Args:
        student: Logits `(B, C, *S)`; receives the gradient.
        teacher: Logits `(B, C, *S)`; detached here.
        keep: `(B, *S)` bool, False for voxels that do not count.
        regions: True if the channels are overlapping regions (sigmoid), False for exclusive classes (softmax).
        used: `(B, P, *S)` bool, `P` 1 or the number of regions: the certain voxels; None for all kept ones.

    Returns:
        Scalar; exactly 0 with zero gradient if no voxel is used.

    Raises:
        ValueError: If shapes disagree.
        TypeError: If `keep` or `used` is not boolean.
    """
    check_same_shape("squared_difference", student=student, teacher=teacher)
    check_keep("squared_difference", keep, student)
    if used is not None:
        problems = student.shape[1] if regions else 1
        check_mask("squared_difference", "used", used, (student.shape[0], problems, *student.shape[2:]))
    mask = keep.unsqueeze(1) if used is None else keep.unsqueeze(1) & used
    with torch.autocast(student.device.type, enabled=False):
        # Blank unused voxels before the softmax, not after the loss: an inf or NaN in them would stay in the
        # gradient, which is a product with 0. Equal probabilities then add nothing to the sum.
        p, q = (_probabilities(z.masked_fill(~mask, 0), regions) for z in (student, teacher.detach()))
        difference = (p - q).square()
        return global_mean(difference.sum(), mask.expand_as(difference).sum())


class MeanProbability:
    """Running mean of the probabilities over several passes; single passes are not kept.

    Args:
        regions: True if the channels are overlapping regions (sigmoid), False for exclusive classes (softmax).
    """

    def __init__(self, *, regions: bool) -> None:
        self.regions = regions
        self.passes = 0
        self.total: Tensor | None = None

    @torch.no_grad()
    def add(self, logits: Tensor) -> None:
        """Add one pass, logits `(B, C, *S)`."""
        probabilities = _probabilities(logits, self.regions)
        self.total = probabilities if self.total is None else self.total.add_(probabilities)
        self.passes += 1

    @torch.no_grad()
    def entropy(self) -> Tensor:
        """Entropy of the mean, in nats (UA-MT, equation 2).

        Returns:
            `(B, P, *S)`, `P` 1 or the number of regions; in `[0, log K]`, two classes per region.

        Raises:
            ValueError: If there was no pass.
        """
        if self.total is None:
            raise ValueError("MeanProbability.entropy: needs at least 1 pass; got 0.")
        mean = self.total / self.passes
        if self.regions:
            return -(torch.xlogy(mean, mean) + torch.xlogy(1 - mean, 1 - mean))
        return -torch.xlogy(mean, mean).sum(dim=1, keepdim=True)


def _probabilities(logits: Tensor, regions: bool) -> Tensor:
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return logits.sigmoid() if regions else logits.softmax(dim=1)
