"""Labelled and unlabelled samples in one batch, drawn by one pool of workers."""

from __future__ import annotations

from typing import Any

from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader

from nnunet_collab.data.loaders import BatchSource


class TwoStreams:
    """Draws a labelled batch, then an unlabelled one.

    Args:
        labeled: nnU-Net's loader of labelled cases.
        unlabeled: Loader of an `UnlabeledDataset` through `WeakAndStrongViews`.

    A batch has nnU-Net's entries of the labelled part, and `views` `(B_u, V * C, *S)`, `where` `(B_u, 1, *S)`,
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
            "where": unlabeled["target"],
            "keys_unlabeled": unlabeled["keys"],
        }


class RandomCrops(nnUNetDataLoader):  # type: ignore[misc]
    """nnU-Net's loader without any choice of crops by label: no oversampling, no search for annotated voxels."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, oversample_foreground_percent=0.0, **kwargs)
        # With an ignore label nnU-Net centres even random crops on annotated voxels, whose places are unknown here.
        self.has_ignore = False
