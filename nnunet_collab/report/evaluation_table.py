"""Read a CSV of `nnunet_collab evaluate`, and check every value."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from nnunet_collab.core.csv_text import restored
from nnunet_collab.core.errors import CollabError
from nnunet_collab.evaluation.lesions import LESION_COUNTS
from nnunet_collab.evaluation.metrics import DISTANCES, FLAGS, OVERLAPS, SHARES, in_voxels

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_TEXTS = ["case", "class", "patient", "distance_unit"]
_DISTANCES = (*DISTANCES, *map(in_voxels, DISTANCES))
_INFINITE = float("inf")
# Column -> rule and test of a value that is there.
_RANGES: dict[str, tuple[str, Callable[[pd.Series], pd.Series]]] = {
    **dict.fromkeys((*SHARES, "mae"), ("between 0 and 1", lambda v: v.between(0, 1))),
    **dict.fromkeys(
        _DISTANCES,
        ("a distance, finite and not below 0", lambda v: v.between(0, _INFINITE, inclusive="left")),
    ),
    **dict.fromkeys(LESION_COUNTS, ("a number of lesions", lambda v: (v >= 0) & (v % 1 == 0))),
    "rve": ("finite and at least -1", lambda v: v.between(-1, _INFINITE, inclusive="left")),
    "nsd_tolerance": ("a tolerance above 0", lambda v: v.between(0, _INFINITE, inclusive="neither")),
}


def read_evaluation(path: Path) -> pd.DataFrame:
    """The rows of cases: one per case and class, without the column `statistic`.

    Raises:
        CollabError: If the file is not such a table, a case lacks a class or has it twice, or a value is invalid: not a
            number, a Dice, Jaccard, NSD, lesion score or MAE outside of 0 to 1, a distance below 0, a volume error
            below -1, an infinite value, a flag that is not 0 or 1, a required value that is missing, or a value where
            there must be none (`evaluation.metrics` has the rules).
    """
    rule = f"report: {path} must be a table of `nnunet_collab evaluate`"
    try:
        table = restored(pd.read_csv(path, dtype=dict.fromkeys([*_TEXTS, "statistic"], str), keep_default_na=False))
        frame = table[table["statistic"] == "case"].drop(columns="statistic").reset_index(drop=True)
        cases_and_classes = frame[["case", "class"]]
    except (OSError, ValueError, KeyError) as error:
        raise CollabError(f"{rule}; {type(error).__name__}: {error}. Write it again.") from error
    if frame.empty or cases_and_classes.duplicated().any():
        raise CollabError(f"{rule}, with every case and class once; it is empty, or has some twice. Write it again.")
    if len(frame) != frame["case"].nunique() * frame["class"].nunique():
        raise CollabError(f"{rule}, with every class of every case; some are missing. Write it again.")
    numbers = frame.columns.drop(_TEXTS, errors="ignore")
    for column in numbers:
        text, frame[column] = frame[column], pd.to_numeric(frame[column], errors="coerce").astype(float)
        _refuse(
            rule,
            frame,
            text,
            frame[column].isna() & ~(text.isna() | text.isin(["", "nan", "NaN"])),
            "a number, or empty",
        )
        for wanted, wrong in _impossible(frame, column):
            _refuse(rule, frame, text, wrong, wanted)
    if "distance_unit" in frame:
        _refuse(rule, frame, frame["distance_unit"], ~frame["distance_unit"].isin(["mm", "pixel"]), "mm or pixel")
    return frame


def _impossible(frame: pd.DataFrame, column: str) -> Iterator[tuple[str, pd.Series]]:
    """Rules for the values of a column, each with a mask of the rows that break it."""
    values = frame[column]
    if column in _RANGES:
        rule, within = _RANGES[column]
        yield rule, ~values.isna() & ~within(values)
    if column == "nsd_tolerance":
        yield "a tolerance above 0", values.isna()
    if column in FLAGS:
        yield "0 or 1", ~values.isin([0, 1])
    if set(FLAGS) <= set(frame.columns):
        yield from _against_flags(frame, column)


def _against_flags(frame: pd.DataFrame, column: str) -> Iterator[tuple[str, pd.Series]]:
    """Rules that the flags of empty masks set."""
    values, missing = frame[column], frame[column].isna()
    missed, false_positive, neither = (pd.to_numeric(frame[flag], errors="coerce") == 1 for flag in FLAGS)
    one = missed | false_positive
    if column in FLAGS:
        yield "the only flag that is 1", (values == 1) & (missed.astype(int) + false_positive + neither > 1)
    if column in (*OVERLAPS, "nsd"):
        yield "empty, because neither mask has the class (both_empty)", neither & ~missing
        yield "present, because a mask has the class (both_empty is 0)", ~neither & missing
        yield "0, because only one mask has the class (missed or false_positive)", one & (values != 0)
    if column == "rve":
        without = false_positive | neither
        yield "empty, because the label lacks the class (false_positive or both_empty)", without & ~missing
        yield "present, because the label has the class", ~without & missing
        yield "-1, because the prediction lacks the class (missed)", missed & (values != -1)
    if column in _DISTANCES:
        yield "empty, because a mask lacks the class (missed, false_positive or both_empty)", (one | neither) & ~missing
        yield "present, because both masks have the class", ~(one | neither) & missing


def _refuse(rule: str, frame: pd.DataFrame, text: pd.Series, wrong: pd.Series, wanted: str) -> None:
    if wrong.any():
        first = wrong.idxmax()
        more = f" (and {int(wrong.sum()) - 1} more of its values)" if wrong.sum() > 1 else ""
        raise CollabError(
            f"{rule}; {text.name} of case {frame['case'][first]}, class {frame['class'][first]}, must be {wanted}; it "
            f"is {text[first] if text[first] != '' else 'empty'}{more}. Run nnunet_collab evaluate again."
        )
