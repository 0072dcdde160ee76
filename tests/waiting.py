"""Counts, on the CPU, where a host would wait for its device: where it asks for a number that the device computes.

Tensors "of the device" are those given, what is computed from them, and what is made with an explicit device. The host
may read all others (draws of CutMix, step counters of an optimizer) as often as it likes.
"""

from __future__ import annotations

from contextlib import ExitStack

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

# Operations whose result, or its size, the host must know.
READING = {
    "_local_scalar_dense", "nonzero", "masked_select", "_unique", "_unique2", "unique_dim", "unique_consecutive",
    "equal", "is_nonzero", "bincount", "repeat_interleave.Tensor",
}  # fmt: skip
COPYING = (Tensor.cpu, Tensor.tolist, Tensor.numpy, Tensor.__array__)


class Waits:
    """Context manager; `found` names every wait, in turn.

    Args:
        tensors: Those on the device at first.
    """

    def __init__(self, tensors):
        self.tensors = {id(t): t for t in tensors}  # kept, so that no other tensor gets the same id
        self.found = []
        self.contexts = ExitStack()

    def __enter__(self):
        self.contexts.enter_context(_Dispatched(self))
        self.contexts.enter_context(_Called(self))
        return self

    def __exit__(self, *error):
        self.contexts.close()

    def knows(self, values):
        return any(isinstance(leaf, Tensor) and id(leaf) in self.tensors for leaf in tree_leaves(values))

    def add(self, values):
        self.tensors |= {id(leaf): leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor)}


class _Dispatched(TorchDispatchMode):
    def __init__(self, waits):
        super().__init__()
        self.waits = waits

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if self.waits.knows((args, kwargs)):
            name = function._schema.name.split("::")[1]
            if {name, f"{name}.{function._overloadname}"} & READING or (name.startswith("index") and _has_mask(args)):
                self.waits.found.append(name)
            self.waits.add(result)
        return result


class _Called(TorchFunctionMode):
    def __init__(self, waits):
        super().__init__()
        self.waits = waits

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function in COPYING and self.waits.knows(args):
            self.waits.found.append(function.__name__)
        result = function(*args, **(kwargs or {}))
        if (kwargs or {}).get("device") is not None:
            self.waits.add(result)
        return result


def _has_mask(args):
    """Whether a tensor is indexed by truth values, whose number is the size of the result."""
    indices = args[1] if len(args) > 1 and isinstance(args[1], (list, tuple)) else ()
    return any(isinstance(index, Tensor) and index.dtype in (torch.bool, torch.uint8) for index in indices)
