"""Text that a spreadsheet would run, in every cell and in the head, written harmless and read back unchanged."""

from __future__ import annotations

import csv

import pandas as pd
import pytest

from nnunet_collab.core.csv_text import restored, write_csv

FORMULAS = [
    "=1+1",
    "+1",
    "-2+3",
    "@SUM(A1)",
    "\tx",
    "\rx",
    "=cmd|' /C calc'!A0",
    '=HYPERLINK("x","y")',
    "-",
    "'=1",
    "''+a",
]
PLAIN = ["a\r=1", "a\n=1", "liver", "a=b", "", "'quoted'", "1e5", "\N{EN DASH} 3", "it's", "a,b", 'a"b', "'"]


def cells(path):
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.reader(file))


@pytest.mark.parametrize("text", FORMULAS)
def test_formula_is_neutralized(tmp_path, text):
    frame = pd.DataFrame({"case": [text, "b"], text: ["x", text], "dice": [-0.5, 1.0], "missed": [0, -1]})
    write_csv(frame, tmp_path / "a.csv")
    head, *rows = cells(tmp_path / "a.csv")
    assert head == ["case", f"'{text}", "dice", "missed"]
    assert rows == [[f"'{text}", "x", "-0.5", "0"], ["b", f"'{text}", "1.0", "-1"]]
    assert frame["case"][0] == text  # the table itself is unchanged
    pd.testing.assert_frame_equal(restored(pd.read_csv(tmp_path / "a.csv")), frame, check_dtype=False)


@pytest.mark.parametrize("text", PLAIN)
def test_other_text_and_numbers_stay(tmp_path, text):
    write_csv(pd.DataFrame({"case": [text], "n": pd.array([None], dtype="Int64"), "d": [-1e-3]}), tmp_path / "a.csv")
    assert cells(tmp_path / "a.csv")[1] == [text, "", "-0.001"]
    frame = pd.DataFrame({"case": [text]})
    pd.testing.assert_frame_equal(restored(frame), frame)
