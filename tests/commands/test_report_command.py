"""Where the report may be written, and that it is there whole or not at all."""

from __future__ import annotations

import json

import numpy as np
import pytest
import SimpleITK as sitk
from reporting import evaluation, report

from nnunet_collab import cli
from nnunet_collab.core.errors import CollabError
from nnunet_collab.report import content


def complaint(*arguments):
    with pytest.raises(CollabError) as caught:
        report(*arguments)
    return str(caught.value)


def test_only_an_earlier_report_is_replaced_and_only_when_asked(tmp_path):
    table, output = evaluation(tmp_path / "a.csv"), tmp_path / "report"
    output.mkdir()  # an empty one is as good as none
    report(table, "-o", output)
    before = (output / "scores.csv").read_text()
    assert f"{output} holds a report already. Name another folder, or replace it with --overwrite." in complaint(
        table, "-o", output
    )
    report(evaluation(tmp_path / "a.csv", seed=1), "-o", output, "--overwrite")
    assert (output / "scores.csv").read_text() != before
    (output / "thesis.tex").touch()
    assert f"{output} also holds thesis.tex. Name another folder." in complaint(table, "-o", output, "--overwrite")


def test_places_that_cannot_be(tmp_path):
    table = evaluation(tmp_path / "a.csv")
    for output in (table, tmp_path / "no" / "report"):
        assert f"-o must be in a folder that exists; got {output}." in complaint(table, "-o", output)
    missing = tmp_path / "missing"
    assert f"there is no {missing}. Correct the path." in complaint(table, missing, "-o", tmp_path / "report")
    assert f"there is no {missing}." in complaint(table, "-l", missing, "-o", tmp_path / "report")


def test_a_report_that_fails_leaves_the_former_one(tmp_path, monkeypatch):
    table, output = evaluation(tmp_path / "a.csv"), tmp_path / "report"
    report(table, "-o", output)
    before = sorted(path.name for path in output.iterdir())
    monkeypatch.setattr(content, "box_plots", lambda comparison: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        report(table, "-o", output, "--overwrite")
    assert sorted(path.name for path in output.iterdir()) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.csv", "report"]


def test_it_is_a_command_and_says_what_it_reads_and_writes(tmp_path, capsys):
    table = evaluation(tmp_path / "a.csv")
    assert cli.main(["report", str(table), "-o", str(tmp_path / "report")]) == 0
    printed = capsys.readouterr().out
    for line in (
        f"reads   {table}",
        f"writes  {tmp_path / 'report'}",
        f"wrote   {tmp_path / 'report' / 'report.html'}",
    ):
        assert line in printed
    assert cli.main(["report", str(tmp_path / "no"), "-o", str(tmp_path / "x")]) == 2


def test_predictions_may_be_named_from_where_one_is(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    for folder in ("out", "labels"):
        (tmp_path / folder).mkdir()
        for case in ("a", "b"):
            image = sitk.GetImageFromArray(rng.integers(0, 2, (3, 8, 8)).astype(np.uint8))
            sitk.WriteImage(image, str(tmp_path / folder / f"{case}.nii.gz"))
    content = {"labels": {"background": 0, "organ": 1}, "file_ending": ".nii.gz", "channel_names": {"0": "MRI"}}
    (tmp_path / "out" / "dataset.json").write_text(json.dumps(content))
    monkeypatch.chdir(tmp_path)
    assert cli.main(["report", "out", "-l", "labels", "-o", "report"]) == 0
    assert (tmp_path / "report" / "report.html").is_file()
