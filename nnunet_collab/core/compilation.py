"""torch.compile of a single function, with a way out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


def compiled_or_eager(
    function: Callable[..., Any], what: str, log: Callable[[str], None], **options: Any
) -> Callable[..., Any]:
    """`function` compiled; if a compiler fails, the function itself from then on, with one line in the log.

    Args:
        function: Of tensors, and of constants that can be compared.
        what: Its name in the log.
        log: Takes a line.
        options: Of torch.compile.
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
                log(f"WARNING: {what}: torch.compile failed ({reason}); it goes on uncompiled.")
        return function(*args)

    return call
