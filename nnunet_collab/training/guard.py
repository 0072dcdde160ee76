"""Stops a run after too many consecutive non-finite iterations, and names what was not finite."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from nnunet_collab.core.errors import CollabError


class NonFiniteGuard:
    """Counts consecutive skipped iterations.

    Args:
        limit: Number of consecutive skipped iterations that ends the run.
        log: Function that logs one line per skipped iteration.
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
            CollabError: If the limit is reached. Checkpoints written before are intact.
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
                f"in {what}{batch}. The checkpoints are from before these iterations. Lower that student's learning "
                f"rate or raise its warm-up, check the images for non-finite values, then continue with --c or start "
                f"again."
            )
