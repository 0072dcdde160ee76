"""Labeled and unlabeled samples in one batch, drawn by one pool of workers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader

from nnunet_collab.data.loaders import BatchSource

CENTERED = "centered"


class TwoStreams:
    """Draws a labeled batch, then an unlabeled one.

    Args:
        labeled: Loader of labeled cases.
        unlabeled: Loader of an `UnlabeledDataset` through `WeakAndStrongViews`.

    A batch has the entries of the labeled part, and `views` `(B_u, V * C, *S)`, `learn_mask` `(B_u, 1, *S)`,
    `keys_unlabeled`.
    """

    def __init__(self, labeled: BatchSource, unlabeled: BatchSource) -> None:
        self.labeled = labeled
        self.unlabeled = unlabeled

    def generate_train_batch(self) -> dict[str, Any]:
        """Draw one batch from the global generators."""
        labeled, unlabeled = self.labeled.generate_train_batch(), self.unlabeled.generate_train_batch()
        return {
            **labeled,
            "views": unlabeled["data"],
            "learn_mask": unlabeled["target"],
            "keys_unlabeled": unlabeled["keys"],
        }


class LabeledCrops(nnUNetDataLoader):  # type: ignore[misc]
    """nnU-Net's loader, which tells of each sample whether it was centered on foreground: entry `centered` `(B,)` bool.

    It draws the very batches that nnU-Net's loader draws.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.decide: Callable[[int], bool] = self.get_do_oversample  # type: ignore[has-type]
        self.get_do_oversample = self._decide_and_note
        self.decisions: list[bool] = []

    def _decide_and_note(self, sample: int) -> bool:
        self.decisions.append(bool(self.decide(sample)))
        return self.decisions[-1]

    def generate_train_batch(self) -> dict[str, Any]:
        """Draw one batch from the global generators."""
        self.decisions = []
        batch: dict[str, Any] = super().generate_train_batch()
        return {**batch, CENTERED: torch.tensor(self.decisions)}


class RandomCrops(nnUNetDataLoader):  # type: ignore[misc]
    """nnU-Net's loader without any choice of crops by label: no search for annotated voxels.

    Args:
        args: As nnU-Net's loader takes them.
        centered_share: Of the crops that are centered on predicted foreground, where a case has been located; chance
            decides, so that the share holds for a batch of any size.
        kwargs: As nnU-Net's loader takes them.
    """

    def __init__(self, *args: Any, centered_share: float = 0.0, **kwargs: Any) -> None:
        super().__init__(
            *args, oversample_foreground_percent=centered_share, probabilistic_oversampling=centered_share > 0, **kwargs
        )
        # With an ignore label nnU-Net centers even random crops on annotated voxels, whose places are unknown here.
        self.has_ignore = False
