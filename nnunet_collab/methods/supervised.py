"""The baseline for every method: each student alone, on the labeled images only."""

from __future__ import annotations

from typing import ClassVar

from nnunet_collab.training.settings import CNN, StudentSettings, TrainingSettings
from nnunet_collab.training.trainer import CollabTrainer


class SupervisedSettings(TrainingSettings):
    """nnU-Net's own training, with this package's settings."""

    students: tuple[StudentSettings, ...] = (CNN,)


class SupervisedTrainer(CollabTrainer):
    """nnU-Net's loss alone; with the default settings it trains what nnUNetTrainer trains."""

    settings: ClassVar[SupervisedSettings] = SupervisedSettings()
