"""Batches of labeled and unlabeled samples, drawn by one pool of workers."""

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
        unlabeled: Loader of an `UnlabeledDataset` with the transform `WeakAndStrongViews`.

    A batch has the entries of the labeled batch and three more: `views` `(B_u, V * C, *S)`, `learn_mask`
    `(B_u, 1, *S)` and `keys_unlabeled`.
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
    """nnU-Net's loader with one more entry, `centered` `(B,)` bool: whether a sample was centered on foreground.

    It draws the same batches as nnU-Net's loader.
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
    """nnU-Net's loader without choosing crops by label. It does not search for annotated voxels.

    Args:
        args: Arguments of nnU-Net's loader.
        centered_share: Share of the crops that are centered on predicted foreground, for cases that have locations. It
            is decided at random for each crop, so that the share holds on average for any batch size.
        kwargs: Keyword arguments of nnU-Net's loader.
    """

    def __init__(self, *args: Any, centered_share: float = 0.0, **kwargs: Any) -> None:
        super().__init__(
            *args, oversample_foreground_percent=centered_share, probabilistic_oversampling=centered_share > 0, **kwargs
        )
        # With an ignore label nnU-Net centers even random crops on annotated voxels. These are not known here.
        self.has_ignore = False
