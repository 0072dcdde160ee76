"""Operations that CTRCL's collaborative losses add to a step (about one GPU kernel launch each). Bar: at most 300.

A whole training step of both students is run without and with the collaborative terms, uncompiled; views do not count.
The logits are read in the slabs of a GPU, also on the CPU, where launches cost nothing and slabs are smaller.

    python benchmarks/loss_operations.py --scale 2d_small
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import harness
from torch.utils._python_dispatch import TorchDispatchMode

from nnunet_collab.losses import collaborative_pair

BAR = 300


class Operations(TorchDispatchMode):
    """Counts operations that read or write elements."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        # Views, memory without writes, and queries of dtypes launch no kernel.
        name = func._schema.name.split("::")[1]
        self.count += not func.is_view and name not in ("empty", "empty_like", "new_empty", "detach", "promote_types")
        return func(*args, **(kwargs or {}))


def main() -> None:
    """Count and print the table."""
    args = harness.arguments(__doc__)
    collaborative_pair.SLAB_ELEMENTS["cpu"] = collaborative_pair.SLAB_ELEMENTS["cuda"]
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
    counts = {}
    for name, variant in variants.items():
        trainer.settings = variant
        with Operations() as operations:
            trainer.train_step(batch)
        counts[name] = operations.count
    print(harness.head(args))
    print(f"{'step with':26}{'operations':>12}{'extra':>12}")
    for name, count in counts.items():
        print(f"{name:26}{count:12}{count - counts['supervised']:12}")
    extra = counts["+ both (CTRCL)"] - counts["supervised"]
    print(f"operations of RLCL + CFCL = {extra:.1f}, bar {BAR}: {'met' if extra <= BAR else 'MISSED'}")


if __name__ == "__main__":
    main()
