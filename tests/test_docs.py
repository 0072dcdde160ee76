"""The pages: their commands exist, their links lead somewhere, and they become a site without a warning."""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import io
import json
import os
import re
import shlex
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urldefrag

import pytest
from documents import DOCUMENTS, PAGES, ROOT, code, commands, read, slug

from nnunet_collab.cli import build_parser
from nnunet_collab.core.presets import preset_names
from nnunet_collab.core.shipped import doorways

SHELLS = ("", "sh", "bash")
INCLUDED = {"contributing.md": "CONTRIBUTING.md", "changelog.md": "CHANGELOG.md", "studies.md": "studies/README.md"}
WRITTEN_BY_THE_READER = {"MyCTRCLTrainer", "MyMethodTrainer", "NAMETrainer"}


def name_of(path):
    return path.relative_to(ROOT).as_posix()


def blocks_of(path):
    """Every command line in the blocks of a document."""
    text = path.read_text(encoding="utf-8")
    return [line for language in SHELLS for block in code(text, language) for line in commands(block)]


def spoken_of(path):
    """Commands in the sentences and tables of a document; parts of them may be left out."""
    return re.findall(r"`((?:nnunet_collab|nnUNetv2_\w+) [^`]+)`", path.read_text(encoding="utf-8"))


def fault(words):
    """What the parser of the command line says against these arguments, or None."""
    parser = build_parser(next((word for word in words if not word.startswith("-")), ""))
    told = io.StringIO()
    try:
        with contextlib.redirect_stderr(told), contextlib.redirect_stdout(told):
            parser.parse_args(words)
    except SystemExit as end:
        return told.getvalue() if end.code else None
    return None


def calls(line):
    """The arguments of each call of our command in a line, without where its output goes."""
    for words in re.findall(r"(?:^|\$\(|[|;&] *)nnunet_collab ([^|;&)>]*)", line):
        yield shlex.split(words)


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_our_commands_are_accepted_by_the_command_line(path):
    for line in blocks_of(path):
        for words in calls(line):
            assert fault(words) is None, f"{line}\n{fault(words)}"


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_our_commands_in_sentences_exist_with_their_options(path):
    for line in spoken_of(path):
        for words in calls(line):
            if words[0].isupper() or words[0].startswith("-"):  # COMMAND, --help
                continue
            assert fault([words[0], "--help"]) is None, line
            (commands_of,) = (a for a in build_parser(words[0])._actions if isinstance(a, argparse._SubParsersAction))
            known = commands_of.choices[words[0]]._option_string_actions
            assert [word for word in words if word.startswith("-") and word not in known] == [], line


def test_a_wrong_command_is_seen():
    assert "invalid choice" in fault(["evalute"])
    assert "unrecognized arguments: --lables" in fault(["report", "a", "-o", "b", "--lables", "c"])
    assert fault(["report", "a", "-o", "b"]) is None


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_nnunets_commands_exist(path):
    there = {entry.name for entry in importlib.metadata.entry_points(group="console_scripts")}
    for line in [*blocks_of(path), *spoken_of(path)]:
        for command in re.findall(r"\bnnUNetv2_\w+", line):
            assert command in there, line


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_trainers_that_are_named_exist(path):
    known = {*doorways(), *WRITTEN_BY_THE_READER, "nnUNetTrainer"}
    named = set(re.findall(r"\b([A-Za-z]+Trainer)(?:_\w+)?\b", path.read_text(encoding="utf-8")))
    assert {name for name in named if name[0].isupper() or name == "nnUNetTrainer"} - known <= {
        "CollabTrainer", "SemiSupervisedTrainer",
    }  # fmt: skip


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_python_and_json_in_the_pages_are_whole(path):
    text = path.read_text(encoding="utf-8")
    for block in code(text, "python"):
        compile(block, path.name, "exec")
    for block in code(text, "json"):
        json.loads(block)


# ---------------------------------------------------------------- links


def anchors(path):
    text = re.sub(r"^( *)```.*?^ *```$", "", path.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    return {slug(heading) for heading in re.findall(r"^#+ (.+)$", text, flags=re.MULTILINE)}


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_links_between_documents_lead_somewhere(path):
    for target in re.findall(r"\]\(([^)\s]+)\)", path.read_text(encoding="utf-8")):
        if target.startswith("https://"):
            continue
        file, anchor = urldefrag(target)
        place = (path.parent / file).resolve() if file else path
        assert place.exists(), target
        if anchor and place.name not in ("settings.md",):
            source = ROOT / INCLUDED[place.name] if place.name in INCLUDED else place
            assert anchor in anchors(source), f"{target}: {sorted(anchors(source))}"


def test_every_page_is_reached_from_the_readme_or_from_the_start_of_the_site():
    index = read("docs/index.md")
    for page in PAGES:
        if page.stem != "index":
            assert re.search(rf"^{page.stem}$", index, flags=re.MULTILINE), f"{page.name} is in no toctree"
    linked = set(re.findall(r"\]\(docs/(\w+)\.md", read("README.md")))
    assert {page.stem for page in PAGES} - linked == {"index", "api", "contributing", "changelog", "studies"}


# ---------------------------------------------------------------- the site


class Page(HTMLParser):
    """Links and anchors of a page."""

    def __init__(self, text):
        super().__init__()
        self.links, self.anchors = [], set()
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        self.anchors |= {attributes[key] for key in ("id", "name") if attributes.get(key)}
        self.links += [attributes[key] for key in ("href", "src") if attributes.get(key)]


def broken_links(folder):
    """Links of all pages in a folder that lead to a file or an anchor that is not there."""
    pages = {path.resolve(): Page(path.read_text(encoding="utf-8")) for path in folder.rglob("*.html")}
    for path, page in pages.items():
        for link in page.links:
            if re.match(r"[a-z]+:|//", link):
                continue
            file, anchor = urldefrag(link)
            target = (path.parent / unquote(file.partition("?")[0])).resolve() if file else path
            if not target.exists() or (anchor and target in pages and unquote(anchor) not in pages[target].anchors):
                yield f"{path.name}: {link}"


def test_broken_links_are_seen(tmp_path):
    (tmp_path / "a.html").write_text('<a href="b.html#x">1</a><a href="c.html">2</a><a href="#y">3</a><p id="z">')
    (tmp_path / "b.html").write_text('<p id="y"><a href="a.html#z">4</a><a href="https://example.org/no">5</a>')
    assert sorted(broken_links(tmp_path)) == ["a.html: #y", "a.html: b.html#x", "a.html: c.html"]


@pytest.mark.slow
def test_the_site_is_built_without_a_warning_and_its_links_lead_somewhere(tmp_path):
    options = ["-W", "--keep-going", "-q", "-b", "html", "-d", tmp_path / "doctrees"]
    done = subprocess.run(
        [sys.executable, "-m", "sphinx", *options, ROOT / "docs", tmp_path / "site"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-5000:]
    site = tmp_path / "site"
    assert {f"{page.stem}.html" for page in PAGES} <= {path.name for path in site.glob("*.html")}
    assert list(broken_links(site)) == []
    settings = (site / "settings.html").read_text(encoding="utf-8")
    for name in (*doorways(), *preset_names()):
        assert name in settings
    assert "rectify_from_iteration" in settings
    assert "collaborative_pair" in (site / "api.html").read_text(encoding="utf-8")


# ---------------------------------------------------------------- the notebook


@pytest.mark.slow
def test_the_notebook_runs(tmp_path, monkeypatch):
    import nbclient
    import nbformat

    monkeypatch.setenv("PATH", os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
    for name, value in {"nnUNet_n_proc_DA": "1", "nnUNet_def_n_proc": "1", "OMP_NUM_THREADS": "1"}.items():
        monkeypatch.setenv(name, value)
    notebook = nbformat.read(ROOT / "docs" / "tutorial.ipynb", as_version=4)
    client = nbclient.NotebookClient(notebook, timeout=1200, resources={"metadata": {"path": str(tmp_path)}})
    client.execute()
    assert (tmp_path / "phantom" / "study_phantom" / "report" / "report.html").is_file()
    assert (tmp_path / "phantom" / "model.zip").is_file()


def test_the_notebook_is_stored_without_output():
    cells = json.loads(read("docs/tutorial.ipynb"))["cells"]
    assert all(not cell["outputs"] and cell["execution_count"] is None for cell in cells if cell["cell_type"] == "code")
