"""Checks of LDC before a training starts: batches and datasets that do not fit the settings."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from nnunet_collab.core.errors import CollabError


def check_pairs(labeled: int, unlabeled: int) -> None:
    """Refuse a batch in which not every labeled sample has an unlabeled partner.

    Raises:
        CollabError: If the numbers of samples differ.
    """
    if labeled != unlabeled:
        raise CollabError(
            f"setting 'contrast': 'official_diagonal' pairs each labeled sample with an unlabeled one, so a batch must "
            f"hold equal numbers; on this process it has {labeled} and {unlabeled}. Leave unlabeled_batch_size at "
            f"its default."
        )


def check_no_ignore_label(label_manager: Any) -> None:
    """Refuse sizes from labels if the dataset has an ignore label, because crops are then centered on annotations.

    Raises:
        CollabError: If the dataset has an ignore label.
    """
    if label_manager.has_ignore_label:
        raise CollabError(
            "setting 'size_source': 'labeled' takes the sizes of the classes from labeled crops, and this dataset has "
            "an ignore label: its crops are centered on annotated voxels, the others' sizes are unknown. Set "
            "size_source to 'teacher', or, where the formulation has none, constraint to 'none'."
        )


def check_crops_at_random_places(everywhere: float, labeled: int) -> None:
    """Refuse sizes from labels if no labeled crop is at a random place.

    Args:
        everywhere: Number of such crops in a step of all processes.
        labeled: Labeled samples of this process.

    Raises:
        CollabError: If there is none.
    """
    if everywhere == 0:
        raise CollabError(
            f"setting 'size_source': 'labeled' takes the sizes from labeled crops at random places, and a batch of "
            f"{labeled} labeled samples has none: all are centered on foreground. Lower "
            f"oversample_foreground_percent in a trainer of your own, or use 'teacher'."
        )


def check_every_class_is_labeled(data: Any, wanted: Iterable[int | Sequence[int]]) -> None:
    """Raise if the labeled cases do not show a class whose size is needed.

    Args:
        data: nnU-Net's dataset of the labeled training cases.
        wanted: Foreground labels or regions.

    Raises:
        CollabError: If no case has a class.
    """
    missing = {_as_plain(c) for c in wanted}
    for case in data.identifiers:
        found = data.load_case(case)[3]["class_locations"]
        missing -= {_as_plain(c) for c, places in found.items() if len(places)}
        if not missing:
            return
    raise CollabError(
        f"setting 'size_source': 'labeled' takes the size of each class from the labeled cases, and none of the "
        f"{len(data.identifiers)} of this fold has label {', '.join(sorted(map(str, missing)))}. Label a case that "
        f"has it, or set size_source to 'teacher' or constraint to 'none'."
    )


def _as_plain(label: int | Sequence[int]) -> int | tuple[int, ...]:
    """A label or region in one form, from either of nnU-Net's forms; its labels may be numpy integers."""
    return tuple(int(c) for c in label) if isinstance(label, Sequence) else int(label)
