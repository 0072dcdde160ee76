"""Common settings of the methods that learn from labeled and unlabeled images."""

from __future__ import annotations

from nnunet_collab.core.settings import COUNT, setting
from nnunet_collab.training.settings import CollaborativeSettings


class SemiSupervisedSettings(CollaborativeSettings):
    """Settings of every method with unlabeled images. Weights are relative to nnU-Net's whole loss, 1."""

    unlabeled_batch_size: int | None = setting(
        None,
        "Unlabeled samples per step, of all processes together, on top of nnU-Net's batch. null: the number of labeled "
        "ones. To train on labels alone, use SupervisedTrainer.",
        unit="samples",
        **COUNT,
    )
    loss_scale: float = setting(
        1.0,
        "Factor of the whole loss. Published programs use less than 1 for nnU-Net's loss; their presets do, too.",
        gt=0,
    )
    centered_share: float = setting(
        1 / 3,
        "Unlabeled crops that are centered on predicted foreground, where nnunet_collab preprocess_unlabeled --locate "
        "has found it; all others are at random places. 0: no crop is centered.",
        unit="share of the crops",
        ge=0,
        le=1,
        source="nnU-Net's share of labeled crops",
    )
    unlabeled_voxels: bool = setting(True, "Whether the voxels of the ignore label are unlabeled data, too.")
    unlabeled_deep_supervision: bool = setting(
        True,
        "Whether pseudo labels also teach the auxiliary outputs of lower resolution, with nnU-Net's weights, where a "
        "student has them.",
    )
