"""The Markdown files that users read, and the pieces of code in them."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGES = sorted((ROOT / "docs").glob("*.md"))
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "studies" / "README.md", *PAGES]


def read(name: str) -> str:
    """Text of a file, by its path in the repository."""
    return (ROOT / name).read_text(encoding="utf-8")


def section(text: str, title: str) -> str:
    """The text under a heading, up to the next one of the same level."""
    match = re.search(rf"^(#+) {re.escape(title)}\n(.*)", text, flags=re.DOTALL | re.MULTILINE)
    assert match, f"there is no section {title!r}"
    return re.split(rf"^#{{1,{len(match[1])}}} ", match[2], flags=re.MULTILINE)[0]


def code(text: str, language: str = "") -> list[str]:
    """The blocks of one language; indented ones, too, without their indent."""
    blocks = re.findall(rf"^( *)```{language}\n(.*?)^ *```$", text, flags=re.DOTALL | re.MULTILINE)
    return ["\n".join(line.removeprefix(indent) for line in block.splitlines()) + "\n" for indent, block in blocks]


def commands(block: str) -> list[str]:
    """The lines of a block of commands, without their comments."""
    lines = [line.split("  #")[0].strip() for line in block.replace("\\\n", " ").splitlines()]
    return [line for line in lines if line and not line.startswith("#")]


def slug(heading: str) -> str:
    """The anchor that GitHub and the site give a heading."""
    text = re.sub(r"[`*]|\[([^]]*)\]\([^)]*\)", r"\1", heading).strip().lower()
    return re.sub(r"[^\w\- ]", "", text).replace(" ", "-")
