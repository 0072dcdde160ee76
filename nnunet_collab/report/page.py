"""Write the report: one self-contained HTML page, and the same content as Markdown, LaTeX and CSV."""

from __future__ import annotations

import base64
import datetime
import re
from collections.abc import Callable, Iterable, Sequence
from importlib.resources import files
from pathlib import Path

import pandas as pd
from jinja2 import Environment, StrictUndefined

from nnunet_collab import __version__
from nnunet_collab.core.csv_text import write_csv
from nnunet_collab.report.content import DatasetReport
from nnunet_collab.report.figures import Picture, color_of, dash_of
from nnunet_collab.report.paper import latex_text
from nnunet_collab.report.sentences import READING
from nnunet_collab.report.tables import Cell, Table


def write_report(folder: Path, reports: Sequence[DatasetReport], left_out: Sequence[str]) -> None:
    """Write everything into an existing, empty folder.

    Args:
        folder: Folder for report.html, report.md, report.tex, paper_table.tex, one CSV per kind of number,
            and figures/.
        reports: One report per dataset.
        left_out: A sentence for each training without predictions.
    """
    (folder / "figures").mkdir()
    for name, picture in _pictures(reports):
        (folder / "figures" / name).write_bytes(picture.full or picture.content)
    for name in reports[0].frames:
        frame = pd.concat([report.frames[name] for report in reports], ignore_index=True)
        if len(frame):
            write_csv(frame, folder / f"{name}.csv")
    (folder / "report.html").write_text(html(reports, left_out), encoding="utf-8")
    (folder / "report.md").write_text(markdown(reports, left_out), encoding="utf-8")
    (folder / "report.tex").write_text(latex(reports), encoding="utf-8")
    (folder / "paper_table.tex").write_text("\n".join(report.paper for report in reports), encoding="utf-8")


def html(reports: Sequence[DatasetReport], left_out: Sequence[str]) -> str:
    """The page, which contains its style and pictures."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = files("nnunet_collab.report").joinpath("page.html").read_text(encoding="utf-8")
    return environment.from_string(template).render(
        title=_title(reports),
        version=__version__,
        date=datetime.date.today().isoformat(),
        reports=reports,
        left_out=left_out,
        reading=READING,
        data_uri=_data_uri,
        color_of=color_of,
        dash_of=dash_of,
    )


def markdown(reports: Sequence[DatasetReport], left_out: Sequence[str]) -> str:
    """The report as Markdown; pictures are links into figures/."""
    names = iter(name for name, _ in _pictures(reports))
    lines = [f"# {_markdown_text(_title(reports))}", ""]
    if left_out:
        lines += ["Left out:", "", *(f"- {_markdown_text(line)}" for line in left_out), ""]
    for report in reports:
        lines += [f"## {_markdown_text(report.title)}", "", _markdown_text(" ".join(report.facts)), ""]
        lines += [line for text in report.warnings for line in (f"> {_markdown_text(text)}", "")]
        lines += [
            "Dice, mean of the classes (differences are to the baseline, with corrected p):",
            "",
            *(f"- {_markdown_text(line)}" for line in report.summary),
            "",
        ]
        for section in report.sections:
            lines += [f"### {section.title}", ""]
            lines += [line for text in section.text for line in (_markdown_text(text), "")]
            for table in section.tables:
                lines += [f"**{_markdown_text(table.caption)}**", "", *_markdown_table(table), ""]
                lines += [_markdown_text(table.note), ""] if table.note else []
            for picture in section.pictures:
                lines += [f"![{_markdown_text(picture.alt)}](figures/{next(names)})", ""]
    return "\n".join([*lines, "## How to read the numbers", "", *(f"- {line}" for line in READING), ""])


def latex(reports: Sequence[DatasetReport]) -> str:
    r"""The tables as LaTeX, for \input."""
    lines = [r"% \usepackage{booktabs, graphicx} in the preamble; \input{report} in the text."]
    for report in reports:
        for section in report.sections:
            for table in section.tables:
                lines += _latex_table(table, f"{report.title}: {table.caption}")
    return "\n".join(lines) + "\n"


def _markdown_table(table: Table) -> list[str]:
    lines = ["| " + " | ".join(map(_markdown_text, table.head)) + " |"]
    lines.append("|---" + "|---:" * (len(table.head) - 1) + "|")
    lines += ["| " + " | ".join(_markdown_text(_flat(cell)) for cell in row) + " |" for row in table.rows]
    return lines


def _latex_table(table: Table, caption: str) -> list[str]:
    def row(cells: Iterable[str]) -> str:
        return " & ".join(map(latex_text, cells)) + r" \\"

    return [
        "",
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{latex_text(caption)}}}",
        r"\resizebox{\textwidth}{!}{%",
        rf"\begin{{tabular}}{{l{'r' * (len(table.head) - 1)}}}",
        r"\toprule",
        row(table.head),
        r"\midrule",
        *(row(_flat(cell) for cell in cells) for cells in table.rows),
        r"\bottomrule",
        r"\end{tabular}}",
        *([rf"\par\smallskip{{\footnotesize {latex_text(table.note)}}}"] if table.note else []),
        r"\end{table}",
    ]


def _flat(cell: Cell) -> str:
    return " ".join((cell.text, *cell.below))


def _markdown_text(text: str) -> str:
    return re.sub(r"([\\`*_\[\]<>|#])", r"\\\1", text)


def _title(reports: Sequence[DatasetReport]) -> str:
    return f"Report: {', '.join(report.title for report in reports)}"


def _pictures(reports: Sequence[DatasetReport]) -> list[tuple[str, Picture]]:
    """File names and pictures, in the order of the page."""
    several: Callable[[int], str] = (lambda number: f"report{number}_") if len(reports) > 1 else (lambda number: "")
    return [
        (f"{several(number)}{picture.name}.{'png' if picture.full else picture.kind}", picture)
        for number, report in enumerate(reports, start=1)
        for section in report.sections
        for picture in section.pictures
    ]


def _data_uri(picture: Picture) -> str:
    kind = "svg+xml" if picture.kind == "svg" else picture.kind
    return f"data:image/{kind};base64,{base64.b64encode(picture.content).decode('ascii')}"
