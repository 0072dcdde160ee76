"""Peak memory that CTRCL's losses add to a step. Bar: at most 3 times one student's full-resolution logits.

A whole training step of both students is run without and with the collaborative terms. On CUDA the numbers are those of
the allocator; on the CPU every tensor that an operation creates is counted until it is freed.

    python benchmarks/loss_memory.py --scale 2d_small
"""

from __future__ import annotations

import weakref
from dataclasses import replace
from typing import Any

import harness
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from nnunet_collab.methods.ctrcl import CTRCLSettings, CTRCLTrainer

BAR = 3.0


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of the storages that operations create, and their peak."""

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self._seen: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                self._count(tensor.untyped_storage())
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._seen:
            return
        self._seen.add(key)
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._free, key, size)

    def _free(self, key: int, size: int) -> None:
        self._seen.discard(key)
        self.live -= size


def main() -> None:
    """Measure and print the table."""
    args = harness.arguments(__doc__)
    settings = harness.pair_settings(args)
    off = replace(settings, beta=0.0, gamma_encoder=0.0, gamma_decoder=0.0)
    variants = {
        "supervised": off,
        "+ RLCL": replace(off, beta=3.0),
        "+ CFCL": replace(settings, beta=0.0),
        "+ both (CTRCL)": settings,
    }
    batch = harness.make_batch(args)
    trainer = harness.make_trainer(args, settings)
    trainer.train_step(batch)  # the optimizers' state is made in the first step
    with torch.no_grad(), trainer._autocast():
        logits = trainer.network(batch["data"])["CNN"].logits
    one_student, dtype = logits.nbytes, logits.dtype
    del logits
    peaks = {name: _peak(trainer, variant, batch) for name, variant in variants.items()}
    print(harness.head(args))
    print(f"one student's logits: {one_student / 2**20:.1f} MiB ({dtype})")
    print(f"{'step with':26}{'peak MiB':>12}{'extra / logits':>18}")
    for name, peak in peaks.items():
        print(f"{name:26}{peak / 2**20:12.1f}{(peak - peaks['supervised']) / one_student:18.2f}")
    ratio = (peaks["+ both (CTRCL)"] - peaks["supervised"]) / one_student
    print(f"extra peak / one student's logits = {ratio:.2f}, bar {BAR:.2f}: {'met' if ratio <= BAR else 'MISSED'}")


def _peak(trainer: CTRCLTrainer, settings: CTRCLSettings, batch: dict[str, Any]) -> int:
    trainer.settings = settings
    return peak_of_step(trainer, batch)


def peak_of_step(trainer: Any, batch: dict[str, Any]) -> int:
    """Peak memory of one whole step in bytes, without the memory in use between steps."""
    trainer.optimizers.zero_grad()
    if trainer.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        trainer.train_step(batch)
        return torch.cuda.max_memory_allocated() - before
    with LiveBytes() as counter:
        trainer.train_step(batch)
    return counter.peak


if __name__ == "__main__":
    main()
