"""The options of self-training, as a table of an arm and as options of `nnunet_collab self_train`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

SHARE = 0.5  # of the images, if neither a share nor a threshold is given: the reliable half of ST++

Share = Annotated[float, Field(gt=0, le=1)]
Agreement = Annotated[float, Field(ge=0, le=1)]


class SelfTraining(BaseModel):
    """Rounds of pseudo labels.

    Attributes:
        to: Id of the first dataset to write; each round, and each seed of an arm, takes the next id.
        rounds: Largest number of rounds with pseudo labels.
        share: Share of the unlabeled images that get a pseudo label, the most stable ones; or one share per round, the
            last for all further rounds.
        threshold: Smallest agreement, a mean Dice, of a pseudo label; instead of `share`.
        members: What is compared with the ensemble: the folds, or earlier checkpoints of the same trainings. None: the
            folds if there are several.
        checkpoints: Checkpoint files from the earliest to the last; the last one makes the pseudo labels. nnU-Net's
            own trainers keep these two.
        min_gain: Least gain of the validation Dice for which another round starts, 0 to 1.
        finish: Whether the model of the best round is trained further on the true labels alone.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    to: Annotated[int, Field(ge=1, le=999)]
    rounds: Annotated[int, Field(ge=1)] = 1
    share: Share | Annotated[list[Share], Field(min_length=1)] | None = None
    threshold: Agreement | None = None
    members: Literal["folds", "checkpoints"] | None = None
    checkpoints: Annotated[list[str], Field(min_length=2)] = ["checkpoint_best.pth", "checkpoint_final.pth"]
    min_gain: Annotated[float, Field(ge=0, le=1)] = 0.0
    finish: bool = False

    def share_of(self, number: int) -> float | None:
        """The share of a round, counted from 1; None if the threshold decides."""
        if self.threshold is not None:
            return None
        if isinstance(self.share, list):
            return self.share[min(number, len(self.share)) - 1]
        return SHARE if self.share is None else self.share

    def compares_folds(self, folds: int) -> bool:
        """Whether folds are compared, not checkpoints.

        Args:
            folds: Number of folds that are trained.
        """
        return self.members == "folds" or (self.members is None and folds > 1)

    @property
    def trainings(self) -> int:
        """Largest number of trainings of a fold: of round 0, of each round, and the last one on true labels."""
        return 1 + self.rounds + self.finish
