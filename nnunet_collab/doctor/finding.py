"""What a check found out, and how it is printed."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass
from typing import Literal

Status = Literal["ok", "warn", "FAIL"]


@dataclass(frozen=True)
class Finding:
    """The outcome of one check.

    Attributes:
        status: `FAIL` if training or prediction cannot work, `warn` if it can, but not as one may expect.
        text: One line.
        fix: What to do about it; empty if nothing need be done. May have several lines.
    """

    status: Status
    text: str
    fix: str = ""

    def __str__(self) -> str:
        lines = f"{self.status:<6}{self.text}"
        return f"{lines}\n{textwrap.indent(self.fix, ' ' * 6)}" if self.fix else lines
