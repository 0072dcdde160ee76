"""Networks of the final validation: every published student, and the mean of the students."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from torch import nn

from nnunet_collab.inference.publish import student_folder
from nnunet_collab.networks.group import StudentEnsemble, StudentGroup
from nnunet_collab.training.settings import TrainingSettings


class ToValidate(NamedTuple):
    """One network that predicts the validation cases.

    Attributes:
        name: Name in the log.
        network: With `(B, C, *S)` logits, as nnU-Net's predictor expects.
        fold: Where nnU-Net writes `validation/`: `<results folder of the model>/fold_X`.
    """

    name: str
    network: nn.Module
    fold: Path


def networks_to_validate(
    fold: Path, group: StudentGroup, settings: TrainingSettings, *, regions: bool
) -> Iterator[ToValidate]:
    """Each published student in its own results folder, then the mean of the students in that of the training.

    Args:
        fold: Fold folder of the training.
        group: The networks that are deployed.
        settings: Settings of the training: which students are published, and whether the mean is validated.
        regions: Whether the dataset has regions instead of classes.
    """
    for name in settings.published:
        yield ToValidate(f"student {name}", group[name].network, student_folder(fold.parent, name) / fold.name)
    if settings.validate_ensemble and len(settings.published) > 1:
        yield ToValidate("the mean of the students", StudentEnsemble(list(group), regions=regions), fold)
