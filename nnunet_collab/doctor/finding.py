"""The result of a check, and its printed form."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass
from typing import Literal

Status = Literal["ok", "warn", "FAIL"]


@dataclass(frozen=True)
class Finding:
    """The result of one check.

    Attributes:
        status: `FAIL` if training or prediction cannot work; `warn` if it works, but with a problem.
        text: Result in one line.
        fix: How to fix the problem, in one or more lines; empty if there is none.
    """

    status: Status
    text: str
    fix: str = ""

    def __str__(self) -> str:
        lines = f"{self.status:<6}{self.text}"
        return f"{lines}\n{textwrap.indent(self.fix, ' ' * 6)}" if self.fix else lines
