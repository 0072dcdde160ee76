"""CMAformer trained alone, on the labeled images: the network of the LDC paper without its semi-supervised losses.

Source: Zheng et al., Lagrange Duality and Compound Multi-Attention Transformer, table I (supervised training).
The paper trains by SGD with learning rate 0.001, the release by AdamW with 0.01, both with a weight decay of 3e-5.
Neither was chosen for nnU-Net's schedule, so we train it as nnU-Net trains its Transformers.
"""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

from nnunet_collab.training.settings import TRANSFORMER, StudentSettings, TrainingSettings
from nnunet_collab.training.trainer import CollabTrainer

CMAFORMER = replace(TRANSFORMER, name="CMAformer", network="cmaformer")


class CMAformerSettings(TrainingSettings):
    """nnU-Net's training of one CMAformer; its switches (table III) are keywords in the student's `arch`."""

    students: tuple[StudentSettings, ...] = (CMAFORMER,)


class CMAformerTrainer(CollabTrainer):
    """nnU-Net's loss alone, for a CMAformer."""

    settings: ClassVar[CMAformerSettings] = CMAformerSettings()
