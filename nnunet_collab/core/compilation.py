"""torch.compile of a single function, with a fallback to the uncompiled function."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


def compiled_or_eager(
    function: Callable[..., Any], what: str, log: Callable[[str], None], **options: Any
) -> Callable[..., Any]:
    """`function`, compiled. If compiling fails, one line is logged and the uncompiled function is used from then on.

    Args:
        function: Function to compile; its arguments are tensors, and constants that can be compared.
        what: Name of the function in the log.
        log: Function that logs a line.
        options: Options of torch.compile.
    """
    compiled = torch.compile(function, **options)
    failed = False

    def call(*args: Any) -> Any:
        nonlocal failed
        if not failed:
            try:
                return compiled(*args)
            except torch._dynamo.exc.TorchDynamoException as error:
                failed = True
                reason = " ".join(str(error).split())[:200]
                log(f"WARNING: {what}: torch.compile failed ({reason}); the training goes on without compiling it.")
        return function(*args)

    return call
