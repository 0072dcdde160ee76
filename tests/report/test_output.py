"""The folder of a report: whose files are replaced, what a killed report leaves, and who may be alive."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys

import pytest

from nnunet_collab.core.errors import CollabError
from nnunet_collab.report.output import LIST, refuse_output, remove_leftovers, write_folder

HOST = re.sub(r"[^\w-]", "-", socket.gethostname())


def fill(text="new"):
    def write(folder):
        (folder / "figures").mkdir()
        (folder / "figures" / "box.svg").write_text(text)
        (folder / "report.html").write_text(text)

    return write


def content(folder):
    return {path.relative_to(folder).as_posix(): path.read_text() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def report(tmp_path):
    write_folder(tmp_path / "report", fill("old"), overwrite=False)
    return tmp_path / "report"


def refused(output, overwrite=True):
    with pytest.raises(CollabError) as caught:
        refuse_output(output, overwrite=overwrite)
    return str(caught.value)


def test_an_earlier_report_is_replaced_when_asked_and_knows_its_files(report):
    assert json.loads((report / LIST).read_text()) == ["figures/box.svg", "report.html", LIST]
    assert "holds a report already. Name another folder, or replace it with --overwrite." in refused(
        report, overwrite=False
    )
    refuse_output(report, overwrite=True)
    write_folder(report, fill("new"), overwrite=True)
    assert content(report)["figures/box.svg"] == "new"
    assert [path.name for path in report.parent.iterdir()] == ["report"]


OTHERS = ["thesis.tex", "figures/mine.png", "figures/raw/a.txt", "report.html.bak", ".hidden", "empty/"]


@pytest.mark.parametrize("name", OTHERS)
def test_file_of_the_user_in_a_report_is_refused_and_kept(report, name):
    path = report / name
    path.mkdir() if name.endswith("/") else path.parent.mkdir(parents=True, exist_ok=True)
    if not name.endswith("/"):
        path.write_text("mine")
    before = content(report)
    assert f"also holds {name.rstrip('/')}. Name another folder." in refused(report)
    with pytest.raises(CollabError, match="also holds"):
        write_folder(report, fill(), overwrite=True)  # it may come while a report is made
    assert content(report) == before
    assert path.exists()


@pytest.mark.parametrize("names", [["figures/mine.png"], ["report.html", "figures/box.svg"], ["scores.csv"]], ids=str)
def test_folder_with_names_of_a_report_but_without_its_list_is_refused(tmp_path, names):
    for name in names:
        (tmp_path / "mine" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "mine" / name).write_text("mine")
    assert f"also holds {', '.join(sorted(names))}" in refused(tmp_path / "mine")


@pytest.mark.parametrize("text", ["", "{", "7", '{"a": 1}', "[[1]]"])
def test_damaged_list_is_none(report, text):
    (report / LIST).write_text(text)
    assert "also holds" in refused(report)


@pytest.mark.parametrize("target", ["folder", "report", "nothing", "file"])
def test_link_is_refused_before_anything_else(tmp_path, report, target):
    link = tmp_path / "link"
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    link.symlink_to(tmp_path / target)
    assert f"{link} is a link to {tmp_path / target}" in refused(link)
    before = content(report)
    with pytest.raises(CollabError, match="is a link"):
        write_folder(link, fill(), overwrite=True)
    assert content(report) == before


def test_link_inside_a_report_is_the_users(tmp_path, report):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "a").write_text("mine")
    (report / "link").symlink_to(tmp_path / "mine")
    assert "also holds link" in refused(report)
    assert (tmp_path / "mine" / "a").read_text() == "mine"


@pytest.mark.parametrize("error", [ZeroDivisionError, KeyboardInterrupt, OSError])
def test_report_that_fails_leaves_the_former_one_and_nothing_else(report, error):
    def write(folder):
        (folder / "half").touch()
        raise error

    before = content(report)
    with pytest.raises(CollabError if error is OSError else error):
        write_folder(report, write, overwrite=True)
    assert content(report) == before
    assert [path.name for path in report.parent.iterdir()] == ["report"]


def dead_process():
    done = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, check=True)
    return int(done.stdout)


def test_leftovers_of_killed_reports_are_removed_and_nothing_else(tmp_path, report):
    dead, alive = dead_process(), os.getppid()
    gone = tmp_path / f".report.{HOST}.{dead}.partial"
    stay = [
        tmp_path / f".report.{HOST}.{alive}.partial",
        tmp_path / f".report.another-machine.{dead}.partial",
        tmp_path / f".other.{HOST}.{dead}.partial",
        tmp_path / f".report.{HOST}.{dead}.partial2",
        tmp_path / f".report.{HOST}.x.partial",
    ]
    for folder in (gone, *stay):
        folder.mkdir()
        (folder / "a").touch()
    assert remove_leftovers(report) == [gone]
    assert sorted(tmp_path.iterdir()) == sorted([report, *stay])
    assert remove_leftovers(tmp_path / "nowhere" / "report") == []


def test_former_report_of_a_command_killed_between_two_renames_comes_back(tmp_path, report):
    before = content(report)
    former = tmp_path / f".report.{HOST}.{dead_process()}.former"
    report.rename(former)
    assert remove_leftovers(report) == [former]
    assert content(report) == before
    report.rename(former)
    write_folder(report, fill("new"), overwrite=False)
    assert remove_leftovers(report) == [former]  # a report is there: the former one is not needed
    assert content(report)["report.html"] == "new"
    assert sorted(tmp_path.iterdir()) == [report]


@pytest.mark.slow
def test_report_killed_while_it_writes_leaves_what_the_next_one_removes(tmp_path):
    code = (
        "import os, sys, pathlib; from nnunet_collab.report.output import write_folder\n"
        "write_folder(pathlib.Path(sys.argv[1]), lambda folder: os.kill(os.getpid(), 9), overwrite=False)"
    )
    output = tmp_path / "report"
    assert subprocess.run([sys.executable, "-c", code, output], check=False).returncode == -9
    assert len([*tmp_path.iterdir()]) == 1
    assert len(remove_leftovers(output)) == 1
    assert [*tmp_path.iterdir()] == []
