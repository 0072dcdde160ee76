"""Drop the unlabeled cases of which the students are least certain, at stated moments of a training.

A case is as certain as the pseudo labels of its crops since the last moment: the entropy per voxel of predicted
foreground. The sum over the image would drop large or small cases first, whatever is known about them. (nnFilterMatch
drops the cases of the smallest sum every 100 epochs, which are those with the least foreground.)
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from itertools import pairwise
from typing import Annotated, Any, ClassVar

import torch
from batchgenerators.dataloading.multi_threaded_augmenter import MultiThreadedAugmenter
from pydantic import Field
from torch import Tensor

from nnunet_collab.core.distributed import gather_objects
from nnunet_collab.core.settings import refuse_unused, require, setting
from nnunet_collab.data.unlabeled_dataset import UnlabeledDataset
from nnunet_collab.training.semi_supervised import SemiSupervisedTrainer
from nnunet_collab.training.semi_supervised_settings import SemiSupervisedSettings


class CaseDroppingSettings(SemiSupervisedSettings):
    """Settings of every method that can drop cases."""

    drop_at: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = setting(
        (),
        "Moments after start at which unlabeled cases are dropped, each at the nearest begin of an epoch. None: all "
        "stay.",
        unit="share of the run",
    )
    drop_share: float = setting(
        0.15,
        "Unlabeled cases that are dropped at each moment, those of which the student is least certain first.",
        unit="share of those that are left",
        gt=0,
        lt=1,
        source="nnFilterMatch",
    )

    def __post_init__(self) -> None:
        """Check what settings say together.

        Raises:
            CollabError: Naming the setting, the rule and the value.
        """
        super().__post_init__()
        if not self.drop_at:
            refuse_unused(self, ("drop_share",), "without drop_at")
        epochs = self.drop_epochs
        after = [self.start_iteration / self.iterations_per_epoch, *epochs]
        rising = all(a < b for a, b in pairwise(after))
        require(
            rising and all(epoch < self.epochs for epoch in epochs),
            "drop_at",
            "must be moments after start, one later than the other, at least an epoch apart",
            list(self.drop_at),
        )

    @property
    def drop_epochs(self) -> list[int]:
        """The epochs at whose begin cases are dropped."""
        return [round(moment * self.epochs) for moment in self.drop_at]


class CaseEntropies:
    """Entropy per voxel of predicted foreground of every case, over all ranks and crops since the last moment.

    Args:
        regions: True if the channels are overlapping regions (sigmoid), False for exclusive classes (softmax).
    """

    def __init__(self, *, regions: bool) -> None:
        self.regions = regions
        self.total: dict[str, list[float]] = {}  # sum of the entropy, number of voxels; the same on all ranks
        self.now: dict[str, Tensor] = {}  # the same of this rank in this epoch, on the device: no step waits for it

    @torch.no_grad()
    def add(self, cases: Sequence[str], logits: Tensor, keep: Tensor) -> None:
        """Count the crops of a batch.

        Args:
            cases: Name of the case of each crop.
            logits: Of what labels them, `(B, C, *S)`.
            keep: Voxels that count, `(B, *S)` bool.
        """
        logits = logits.detach().double()
        if self.regions:
            p = logits.sigmoid()
            entropy = -(torch.xlogy(p, p) + torch.xlogy(1 - p, 1 - p)).mean(dim=1)
            found = keep & (logits > 0).any(dim=1)
        else:
            log_p = logits.log_softmax(dim=1)
            entropy = -(log_p.exp() * log_p).sum(dim=1)
            found = keep & (logits.argmax(dim=1) > 0)
        sums = torch.stack([entropy.masked_fill(~found, 0).flatten(1).sum(1), found.flatten(1).sum(1).double()], 1)
        # The step of a batch that is not finite is skipped, too.
        sums = sums.masked_fill(~logits.flatten(1).isfinite().all(1, keepdim=True), 0)
        for case, own in zip(cases, sums, strict=True):
            self.now[case] = self.now[case] + own if case in self.now else own

    def finish_epoch(self) -> None:
        """Add the epoch of all ranks to the total."""
        for of_rank in gather_objects({case: sums.tolist() for case, sums in self.now.items()}):
            for case, (entropy, voxels) in sorted(of_rank.items()):
                before = self.total.get(case, [0.0, 0.0])
                self.total[case] = [before[0] + entropy, before[1] + voxels]
        self.now = {}

    def means(self) -> dict[str, float]:
        """Of every case in which foreground was predicted."""
        return {case: entropy / voxels for case, (entropy, voxels) in self.total.items() if voxels > 0}


def least_certain(means: Mapping[str, float], cases: Collection[str], share: float) -> list[str]:
    """The cases to drop, the least certain first; of equally certain ones the first by name.

    Cases without predicted foreground stay: nothing is known of them. At least one case stays.

    Args:
        means: Entropy per voxel of predicted foreground, by case.
        cases: Those that are left.
        share: How many of them to drop; rounded down.
    """
    known = sorted((case for case in cases if case in means), key=lambda case: (-means[case], case))
    return known[: math.floor(share * len(cases) + 1e-9)]


class CaseDroppingTrainer(SemiSupervisedTrainer):
    """Base of the methods that can drop cases; they call `note_certainty`."""

    settings: ClassVar[CaseDroppingSettings] = CaseDroppingSettings()

    # Attributes that nnU-Net makes, for type checkers.
    dataloader_train: Any
    dataloader_val: Any

    def initialize(self) -> None:
        """Build everything; no case is dropped yet."""
        super().initialize()
        self.dropped: list[str] = []
        self.entropies = CaseEntropies(regions=self.label_manager.has_regions)
        self.cases_of_crops: list[str] = []

    def all_terms(self, batch: dict[str, Any]) -> Any:
        """The terms, with the names of the unlabeled cases at hand."""
        self.cases_of_crops = [str(case) for case in batch.get("keys_unlabeled", ())]
        return super().all_terms(batch)

    def note_certainty(self, logits: Tensor, keep: Tensor) -> None:
        """Note how certain the first crops of the batch are labeled.

        Args:
            logits: `(B, C, *S)`, of as many crops as are taught.
            keep: `(B, *S)` bool.
        """
        if self.settings.drop_at:
            self.entropies.add(self.cases_of_crops[: len(logits)], logits, keep)

    def unlabeled_dataset(self, labeled: Any) -> UnlabeledDataset:
        """The cases that were not dropped."""
        data = super().unlabeled_dataset(labeled)
        self.unlabeled_names = sorted(data.folders)
        return data.without(self.dropped)

    def on_train_epoch_start(self) -> None:
        """At a stated moment, drop cases and start the loaders anew."""
        if self.current_epoch in self.settings.drop_epochs:
            self._drop()
        super().on_train_epoch_start()

    def _drop(self) -> None:
        left = [case for case in self.unlabeled_names if case not in self.dropped]
        means = self.entropies.means()
        worst = least_certain(means, left, self.settings.drop_share)
        entropies = ", ".join(f"{case} ({means[case]:.3g})" for case in worst)
        self.print_to_log_file(
            f"dropped {len(worst)} of {len(left)} unlabeled cases, the least certain by the entropy per voxel of "
            f"predicted foreground: {entropies or 'none'}"
        )
        self.entropies.total = {}
        if worst:
            self.dropped = sorted([*self.dropped, *worst])
            for loader in (self.dataloader_train, self.dataloader_val):
                if isinstance(loader, MultiThreadedAugmenter):
                    loader._finish()
            self.dataloader_train, self.dataloader_val = self.get_dataloaders()

    def on_train_epoch_end(self, train_outputs: list[dict[str, Any]]) -> None:
        """Log the epoch, and add its entropies to those of the epochs before."""
        super().on_train_epoch_end(train_outputs)
        if self.settings.drop_at:
            self.entropies.finish_epoch()

    def method_state(self) -> dict[str, Any]:
        """Also what was dropped, and the entropies since."""
        if not self.settings.drop_at:
            return super().method_state()
        return {**super().method_state(), "dropped": list(self.dropped), "entropies": dict(self.entropies.total)}

    def load_method_state(self, state: dict[str, Any]) -> None:
        """Restore it."""
        super().load_method_state(state)
        if self.settings.drop_at:
            self.dropped = list(state["dropped"])
            self.entropies.total = {case: list(sums) for case, sums in state["entropies"].items()}
