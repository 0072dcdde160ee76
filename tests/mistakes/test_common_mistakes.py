"""docs/common_mistakes.md says what the program says; `UPDATE_DOCS=1 pytest tests/mistakes` writes the page anew."""

from __future__ import annotations

import os
import re
from itertools import groupby
from pathlib import Path

import pytest
from mistakes import MISTAKES, Lab

from nnunet_collab.cli import main
from nnunet_collab.core.errors import CollabError

PAGE = Path(__file__).parents[2] / "docs" / "common_mistakes.md"
HEAD = """# What you did wrong, and what you see

Each row is a test: the mistake is made, and the right column is what the program says. `...` stands for folders of the
test.
"""
seen: dict[str, str] = {}


def message_of(mistake, root, monkeypatch, capsys):
    """What the mistake gives, on one line, lines joined by <br>, without folders of this machine."""
    lab = Lab(root, monkeypatch, main)
    try:
        mistake.make(lab)
    except CollabError as error:
        message = str(error)
    else:
        message = capsys.readouterr().err.rpartition("nnunet_collab: ")[2]
    message = re.sub(rf"{re.escape(str(root))}/?", ".../", message)
    message = message.replace("<", "&lt;")
    message = re.sub(r"process \d+", "process 4711", message)
    return "<br>".join(" ".join(line.split()) for line in message.strip().splitlines())


def row(mistake, message):
    return f"| {mistake.did} | {message.replace('|', chr(92) + '|').replace('*', chr(92) + '*')} |"


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake.make.__name__.strip("_"))
def test_the_page_says_what_the_program_says(mistake, tmp_path, monkeypatch, capsys):
    message = message_of(mistake, tmp_path, monkeypatch, capsys)
    assert len(message) > 40, message
    assert "Traceback" not in message
    seen[mistake.did] = row(mistake, message)
    if not os.environ.get("UPDATE_DOCS"):
        assert seen[mistake.did] in PAGE.read_text().splitlines()


def test_the_page_has_no_other_rows():
    if os.environ.get("UPDATE_DOCS"):
        groups = groupby(MISTAKES, key=lambda mistake: mistake.group)
        tables = [
            "\n".join([f"## {name}\n", "| What you did | What you see |", "|---|---|", *(seen[m.did] for m in group)])
            for name, group in groups
        ]
        PAGE.write_text("\n".join([HEAD, *(table + "\n" for table in tables)]))
    rows = [line for line in PAGE.read_text().splitlines() if line.startswith("| ") and "What you did" not in line]
    assert [line.split(" | ")[0].removeprefix("| ") for line in rows] == [mistake.did for mistake in MISTAKES]
    assert len(rows) >= 30
