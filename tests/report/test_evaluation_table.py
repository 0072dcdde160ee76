"""Every value of a table of `evaluate` that cannot be is refused, with the case, the class, the rule and the value."""

from __future__ import annotations

import math

import pandas as pd
import pytest
from reporting import evaluation

from nnunet_collab.commands.evaluate import write_csv
from nnunet_collab.core.errors import CollabError
from nnunet_collab.evaluation.metrics import summarize
from nnunet_collab.report.evaluation_table import read_evaluation


def changed(path, **values):
    """A table of two cases and two classes; the values are those of case c1, class cyst."""
    table = pd.read_csv(evaluation(path, ["liver", "cyst"], cases=2)).astype(object)
    row = (table["case"] == "c1") & (table["class"] == "cyst")
    for column, value in values.items():
        table.loc[row, column] = value
    table.to_csv(path, index=False)
    return path


def test_a_good_table_is_read_as_it_was_written(tmp_path):
    frame = pd.read_csv(evaluation(tmp_path / "a.csv", ["=liver", "NA"], cases=2)).drop(columns="statistic")
    frame["class"] = frame["class"].fillna("NA")
    frame.insert(1, "patient", ["-1", "-1", "007", "007"])
    frame.loc[0, ["dice", "jaccard"]] = 0.0
    frame.loc[0, [c for c in frame if c.endswith(("_mm", "_voxel"))]] = math.nan
    frame.loc[0, "missed"] = 1
    write_csv(frame, summarize(frame), tmp_path / "a.csv")
    read = read_evaluation(tmp_path / "a.csv")
    pd.testing.assert_frame_equal(read[frame.columns], frame, check_dtype=False)


EMPTY = {f"{d}_{u}": "" for d in ("hd", "hd95", "asd") for u in ("mm", "voxel")}
IMPOSSIBLE = {
    "Dice of 7.5": ({"dice": 7.5}, "dice of case c1, class cyst, must be between 0 and 1; it is 7.5."),
    "Dice in per cent": ({"dice": 91.2}, "must be between 0 and 1; it is 91.2"),
    "Dice below 0": ({"dice": -0.1}, "must be between 0 and 1; it is -0.1"),
    "Dice a word": ({"dice": "good"}, "dice of case c1, class cyst, must be a number, or empty; it is good."),
    "Dice with a comma": ({"dice": "0,5"}, "must be a number, or empty; it is 0,5"),
    "Dice infinite": ({"dice": "inf"}, "must be between 0 and 1; it is inf"),
    "Dice missing": ({"dice": ""}, "must be present, because a mask has the class (both_empty is 0); it is empty"),
    "Jaccard above 1": ({"jaccard": 1.01}, "jaccard of case c1, class cyst, must be between 0 and 1"),
    "MAE above 1": ({"mae": 2}, "mae of case c1, class cyst, must be between 0 and 1"),
    "HD95 below 0": ({"hd95_mm": -1}, "hd95_mm of case c1, class cyst, must be a distance, finite and not below 0"),
    "ASD infinite": ({"asd_voxel": "inf"}, "asd_voxel of case c1, class cyst, must be a distance, finite"),
    "HD missing": ({"hd_mm": ""}, "hd_mm of case c1, class cyst, must be present, because both masks have the class"),
    "flag of 2": ({"missed": 2}, "missed of case c1, class cyst, must be 0 or 1; it is 2."),
    "flag missing": ({"both_empty": ""}, "both_empty of case c1, class cyst, must be 0 or 1; it is empty"),
    "two flags": (
        {"missed": 1, "false_positive": 1, "dice": 0, "jaccard": 0, **EMPTY},
        "must be the only flag that is 1",
    ),
    "Dice of a missed class": ({"missed": 1, "dice": 0.5, "jaccard": 0, **EMPTY}, "must be 0, because only one mask"),
    "Dice of no class": (
        {"both_empty": 1, "jaccard": "", **EMPTY},
        "must be empty, because neither mask has the class",
    ),
    "distance of a missed class": (
        {"missed": 1, "dice": 0, "jaccard": 0},
        "must be empty, because a mask lacks the class",
    ),
    "unit": ({"distance_unit": "cm"}, "distance_unit of case c1, class cyst, must be mm or pixel; it is cm"),
    "missing class": ({"case": "c2"}, "with every class of every case; some are missing"),
    "twice": ({"class": "liver"}, "with every case and class once"),
}


@pytest.mark.parametrize(("values", "told"), IMPOSSIBLE.values(), ids=IMPOSSIBLE)
def test_impossible_value_is_refused(tmp_path, values, told):
    path = changed(tmp_path / "a.csv", **values)
    with pytest.raises(CollabError) as caught:
        read_evaluation(path)
    assert str(caught.value).startswith(f"report: {path} must be a table of `nnunet_collab evaluate`")
    assert told in str(caught.value)


@pytest.mark.parametrize("values", [
    {"missed": 1, "dice": 0, "jaccard": 0, **EMPTY},
    {"false_positive": 1, "dice": 0, "jaccard": 0, **EMPTY},
    {"both_empty": 1, "dice": "", "jaccard": "", **EMPTY},
    {"dice": 0, "jaccard": 0},
    {"mae": ""},
    {"dice": 1, "jaccard": 1, **dict.fromkeys(EMPTY, 0)},
], ids=["missed", "false positive", "both empty", "apart", "all ignored", "equal"])  # fmt: skip
def test_values_that_evaluate_can_give_are_believed(tmp_path, values):
    assert len(read_evaluation(changed(tmp_path / "a.csv", **values))) == 4


MORE = {"nsd": 0.5, "nsd_tolerance": 2, "rve": 0.25, "lesion_f1": 0.5, "lesions_true": 3}
FALSE = {"false_positive": 1, "dice": 0, "jaccard": 0, **EMPTY}
MISSED = {"missed": 1, "dice": 0, "jaccard": 0, **EMPTY}
NEITHER = {"both_empty": 1, "dice": "", "jaccard": "", **EMPTY}
IMPOSSIBLE_MORE = {
    "NSD above 1": ({"nsd": 1.5}, "nsd of case c1, class cyst, must be between 0 and 1; it is 1.5"),
    "NSD missing": ({"nsd": ""}, "nsd of case c1, class cyst, must be present, because a mask has the class"),
    "NSD of a missed class": ({"nsd": 0.5, "rve": -1, **MISSED}, "nsd of case c1, class cyst, must be 0, because only"),
    "no tolerance": ({"nsd_tolerance": ""}, "nsd_tolerance of case c1, class cyst, must be a tolerance above 0"),
    "tolerance of 0": ({"nsd_tolerance": 0}, "must be a tolerance above 0; it is 0"),
    "volume below nothing": ({"rve": -1.5}, "rve of case c1, class cyst, must be finite and at least -1; it is -1.5"),
    "volume infinite": ({"rve": "inf"}, "must be finite and at least -1; it is inf"),
    "volume error missing": ({"rve": ""}, "rve of case c1, class cyst, must be present, because the label has the"),
    "volume error of no truth": ({"nsd": 0, **FALSE}, "rve of case c1, class cyst, must be empty, because the label"),
    "volume error of a missed class": ({"nsd": 0, **MISSED}, "must be -1, because the prediction lacks the class"),
    "F1 above 1": ({"lesion_f1": 2}, "lesion_f1 of case c1, class cyst, must be between 0 and 1; it is 2"),
    "half a lesion": ({"lesions_true": 0.5}, "lesions_true of case c1, class cyst, must be a number of lesions"),
}


def with_more(path, values):
    changed(path, **{name: value for name, value in values.items() if name not in MORE})
    table = pd.read_csv(path, keep_default_na=False).astype(object)
    row = (table["case"] == "c1") & (table["class"] == "cyst")
    for name, value in MORE.items():
        table[name] = pd.Series([value] * len(table), dtype=object)
        table.loc[row, name] = values.get(name, value)
    table.to_csv(path, index=False)
    return path


@pytest.mark.parametrize(("values", "told"), IMPOSSIBLE_MORE.values(), ids=IMPOSSIBLE_MORE)
def test_impossible_value_of_a_measure_that_was_asked_for_is_refused(tmp_path, values, told):
    with pytest.raises(CollabError) as caught:
        read_evaluation(with_more(tmp_path / "a.csv", values))
    assert told in str(caught.value)


@pytest.mark.parametrize("values", [
    {}, {"lesion_f1": "", "lesions_true": ""}, {"rve": -1, "nsd": 0, **MISSED}, {"rve": "", "nsd": 0, **FALSE},
    {"rve": "", "nsd": "", "lesion_f1": "", "lesions_true": 0, **NEITHER}, {"rve": 7.5}, {"rve": -1},
], ids=["usual", "no lesions", "missed", "false positive", "both empty", "too large", "apart"])  # fmt: skip
def test_measures_that_evaluate_can_give_are_believed(tmp_path, values):
    assert len(read_evaluation(with_more(tmp_path / "a.csv", values))) == 4


@pytest.mark.parametrize(
    "content", ["", "case,class\n", "case,class,statistic,dice\n", "\0\1", "case,class,statistic\na,b,case,9,9\n"]
)
def test_no_table_at_all_is_refused(tmp_path, content):
    (tmp_path / "a.csv").write_text(content)
    with pytest.raises(CollabError, match="must be a table of `nnunet_collab evaluate`"):
        read_evaluation(tmp_path / "a.csv")
