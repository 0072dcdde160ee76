"""The folders that a training writes into: locked while it runs, and cleaned of files of earlier runs."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path

from nnunet_collab.core.errors import CollabError, listed
from nnunet_collab.core.files import remove_leftovers
from nnunet_collab.inference.publish import student_folder
from nnunet_collab.training.interruption import EndOnSignals
from nnunet_collab.training.lock import FolderLocks

SUMMARY = "summary.json"


class ResultsFolders:
    """The folders of one training: its own fold folder, and that of every student it publishes.

    Args:
        fold: `.../<Trainer>__<plans>__<configuration>/fold_X`.
        published: Names of the students that are published.
        log: Function that logs what was removed.
        first: Whether this is the process that writes. Other processes of a distributed run only handle signals.
    """

    def __init__(self, fold: Path, published: Iterable[str], log: Callable[[str], None], *, first: bool) -> None:
        self.folds = [fold, *(student_folder(fold.parent, name) / fold.name for name in published)]
        self.log = log
        self.first = first
        self.locks: FolderLocks | None = None
        self.signals = EndOnSignals(f"What was saved in {fold} before is intact; continue with --c.")

    def hold(self) -> None:
        """Lock the folders and remove half-written files of killed runs; safe to call again.

        Raises:
            CollabError: If another training writes into one of them.
        """
        self.signals.install()
        if self.first and self.locks is None:
            self.locks = FolderLocks(self.folds)
            for file in remove_leftovers({*self.folds, *(fold.parent for fold in self.folds)}):
                self.log(f"removed {file}: a run that was killed left it half-written")

    def check(self) -> None:
        """Raise if another training has taken over the folders in the meantime."""
        if self.locks is not None:
            self.locks.check()

    def release(self) -> None:
        """Unlock the folders; this also happens when the process ends, for whatever reason."""
        self.signals.restore()
        if self.locks is not None:
            self.locks.release()
            self.locks = None

    def start_anew(self, cases: Iterable[str], ending: str) -> None:
        """Empty the validation folders of an earlier training. The new training may train on those cases.

        Only what nnU-Net writes there is removed: the summary and, per case, prediction, probabilities and properties.

        Args:
            cases: All cases of the dataset.
            ending: File ending of the dataset's images.

        Raises:
            CollabError: If the folders hold other predictions, which would be evaluated as those of this training.
        """
        if not self.first:
            return
        cases = {*cases}
        for folder in (fold / "validation" for fold in self.folds if (fold / "validation").is_dir()):
            known = cases | {*_summarized(folder / SUMMARY, ending)}
            written = {SUMMARY, *(f"{case}{end}" for case in known for end in (ending, ".npz", ".pkl"))}
            there = [path for path in folder.iterdir() if path.name in written and path.is_file()]
            others = sorted(path.name for path in folder.glob(f"*{ending}") if path not in there)
            if others:
                raise CollabError(
                    f"{folder}: must hold no predictions when a training starts; {listed(others)} belongs to no case "
                    f"of this dataset. Move it away, or train under another run_name."
                )
            for path in there:
                path.unlink()
            if there:
                self.log(f"removed {len(there)} files of an earlier training from {folder}")


def _summarized(summary: Path, ending: str) -> list[str]:
    """Cases in the summary of an earlier validation; the dataset may have changed since."""
    try:
        rows = json.loads(summary.read_text(encoding="utf-8"))["metric_per_case"]
        return [Path(row["prediction_file"]).name.removesuffix(ending) for row in rows]
    except (OSError, ValueError, KeyError, TypeError):
        return []
