"""Stops a run whose numbers have gone wrong, after naming what went wrong first."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from nnunet_collab.core.errors import CollabError


class NonFiniteGuard:
    """Counts consecutive iterations that could not be used.

    Args:
        limit: So many in a row end the run.
        log: Where each is told.
    """

    def __init__(self, limit: int, log: Callable[[str], None]) -> None:
        self.limit = limit
        self.log = log
        self.in_a_row = 0

    def good(self) -> None:
        """The iteration was used."""
        self.in_a_row = 0

    def bad(self, iteration: int, culprits: Sequence[str], cases: Sequence[str] = ()) -> None:
        """The iteration was skipped because of `culprits` (`student/term`); `cases` were in its batch.

        Raises:
            CollabError: If it was one too many; checkpoints written before are intact.
        """
        self.in_a_row += 1
        what = ", ".join(culprits)
        batch = f"; cases in the batch: {', '.join(cases)}" if cases else ""
        self.log(
            f"iteration {iteration}: skipped, not finite: {what} ({self.in_a_row} in a row, {self.limit} end the "
            f"run){batch}"
        )
        if self.in_a_row >= self.limit:
            raise CollabError(
                f"training stopped: {self.in_a_row} iterations in a row were not finite, the last (number {iteration}) "
                f"in {what}{batch}. The checkpoints are those of before. Lower that student's learning rate or raise "
                f"its warm-up, look at the images for non-finite values, then continue with --c or train anew."
            )
