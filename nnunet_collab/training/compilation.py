"""torch.compile for each student, with a fallback to eager mode."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from nnunet_collab.networks.group import StudentGroup
from nnunet_collab.networks.student import Student


def compile_students(group: StudentGroup, log: Callable[[str], None]) -> None:
    """Compile each student in place. One that cannot be compiled stays in eager mode, with one line in the log.

    Compiling in place keeps the names of the weights, so checkpoints do not depend on it.
    """
    for student in group:
        log(f"student {student.name}: compiled with torch.compile")
        student.compile()
        student._compiled_call_impl = _EagerOnFailure(student, log)


class _EagerOnFailure:
    """Calls the compiled student; after a compiler error, the uncompiled student."""

    def __init__(self, student: Student, log: Callable[[str], None]) -> None:
        self.student = student
        self.compiled = student._compiled_call_impl
        self.log = log

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        try:
            return self.compiled(*args, **kwargs)  # type: ignore[misc]
        except torch._dynamo.exc.TorchDynamoException as error:
            reason = " ".join(str(error).split())[:200]  # the first line names only the backend
            self.log(
                f"WARNING: student {self.student.name}: torch.compile failed ({reason}); training continues without it."
            )
            self.student._compiled_call_impl = None
            return self.student(*args, **kwargs)
