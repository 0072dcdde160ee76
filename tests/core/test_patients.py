"""Cases of one patient are known by one pattern, wherever it matters."""

from __future__ import annotations

import pytest

from nnunet_collab.core.errors import CollabError
from nnunet_collab.core.patients import patient_lookup, patient_rule, read_patients


def test_patients_are_the_patterns_first_group_or_the_cases_themselves():
    cases = ["patient004_frame01", "patient004_frame02", "patient012_frame01"]
    patient_of = patient_lookup(r"(patient\d+)_frame\d+", cases)
    assert [*map(patient_of, cases)] == ["patient004", "patient004", "patient012"]
    assert [*map(patient_lookup(None, cases), cases)] == cases


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        ("(", "which is not a regular expression (missing ), unterminated subpattern"),
        (7, "got 7, which is not a regular expression"),
        (r"a_\d", "which has no group"),
        (r"(patient\d+)", "which finds no patient in a_1"),
        (r"(b)?a_\d", "which finds no patient in a_1"),  # the group is there, and empty
        (r"()a_\d", "which finds no patient in a_1"),
    ],
)
def test_a_pattern_that_names_no_patient_is_refused(pattern, found):
    with pytest.raises(CollabError, match="patient_pattern must match whole case names, and its first group") as caught:
        patient_lookup(pattern, ["a_1"])
    assert found in str(caught.value)
    assert r"Correct it in dataset.json or on the command line, e.g. '(patient\d+)_.*'." in str(caught.value)


def test_many_names_are_cut_short():
    with pytest.raises(CollabError, match="finds no patient in b0, b1, b2, b3, b4 and 4 more"):
        patient_lookup(r"(a)\d", ["a0", *(f"b{i}" for i in range(9))])


def test_a_name_that_comes_later_is_refused_likewise():
    with pytest.raises(CollabError, match="which finds no patient in b"):
        patient_lookup(r"(a)_\d", ["a_1"])("b")


# ---------------------------------------------------------------- patients.csv


def table(path, *rows, header="case,patient"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
    return path


def test_a_table_names_the_patients(tmp_path):
    path = table(tmp_path / "patients.csv", "b_1,p", "", "b_2,p", "a,q")
    assert read_patients(path) == {"b_1": "p", "b_2": "p", "a": "q"}
    patient_of = patient_lookup(read_patients(path), ["a", "b_1"])
    assert [patient_of(case) for case in ("b_1", "b_2", "a")] == ["p", "p", "q"]
    with pytest.raises(
        CollabError, match=r"patients.csv: it must name the patient of every case; it has no line for x, y"
    ):
        patient_lookup(read_patients(path), ["a", "x", "y"])
    with pytest.raises(CollabError, match="it has no line for z"):
        patient_of("z")


def test_spreadsheets_of_all_countries_are_read(tmp_path):
    path = tmp_path / "patients.csv"
    path.write_bytes("\ufeffPatient;Remark; Case\r\np;x;a\r\n'=q;;b\r\n".encode())
    assert read_patients(path) == {"a": "p", "b": "=q"}


@pytest.mark.parametrize(
    ("rows", "header", "found"),
    [
        (["a,p"], "name,patient", "its columns must be case and patient; they are name, patient"),
        (["a,p", "a,q"], "case,patient", "line 3 gives a another patient than a line above"),
        (["a", ",p"], "case,patient", "line 2 must name a case and a patient; line 3 must name a case and a patient"),
        ([], "case,patient", "it names no case"),
        (['"a,p'], "case,patient", "it must be a table of patients that can be read; it is not"),
    ],
)
def test_a_table_that_is_none_is_refused(rows, header, found, tmp_path):
    with pytest.raises(CollabError) as caught:
        read_patients(table(tmp_path / "patients.csv", *rows, header=header))
    assert found in str(caught.value)
    assert "patients.csv" in str(caught.value)


def test_the_table_is_found_beside_or_where_dataset_json_says_and_wins_over_a_pattern(tmp_path, monkeypatch):
    monkeypatch.setenv("nnUNet_raw", str(tmp_path / "raw"))
    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path / "pre"))
    content = {"patients": "Dataset001_A/patients.csv", "patient_pattern": "(.)"}
    with pytest.raises(CollabError) as caught:
        patient_rule(content, tmp_path / "here")
    for place in ("here", "pre/Dataset001_A", "raw/Dataset001_A"):
        assert str(tmp_path / place / "patients.csv") in str(caught.value)
    for number, place in enumerate(
        ("raw/Dataset001_A", "pre/Dataset001_A", "here")
    ):  # each is preferred to the one before
        table(tmp_path / place / "patients.csv", f"a,{number}")
        assert patient_rule(content, tmp_path / "here") == {"a": str(number)}
    assert patient_rule({}, tmp_path / "here") == {"a": "2"}
    assert patient_rule({"patient_pattern": "(.)"}, tmp_path / "empty") == "(.)"
    assert patient_rule({}, tmp_path / "empty") is None
