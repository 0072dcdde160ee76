"""Operations of a step of every trainer, relative to nnU-Net's step on the same labeled samples.

python benchmarks/step_flop.py --scale 2d_counted
python benchmarks/step_flop.py --scale 3d_counted

Counted are the convolutions and matrix products, forward and backward, with the default networks of each trainer,
without deep supervision; methods have as many unlabeled samples as labeled ones. Trainers with a Transformer are left
out: torch's table counts the backward pass of its depthwise convolutions as if they were dense.
"""

from __future__ import annotations

import importlib
import os
import tempfile
from pathlib import Path
from typing import Any

import harness
from teacher_methods_step import ALL_VOXELS, make, make_batch

from nnunet_collab.core.shipped import doorways
from nnunet_collab.networks.blueprint import PLANS
from nnunet_collab.training.semi_supervised import SemiSupervisedTrainer

CHANGES: dict[str, dict[str, Any]] = {"CRLNTrainer": ALL_VOXELS}  # random weights are never sure


def main() -> None:
    """Count and print the table."""
    args = harness.arguments(__doc__)
    with tempfile.TemporaryDirectory() as folder:
        for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
            os.environ[name] = str(Path(folder, name))
        counted = {name: count(args, name) for name in ["SupervisedTrainer", *sorted(doorways())] if plain(name)}
    print(f"{args.scale} {harness.SCALES[args.scale]}, and as many unlabeled samples")
    for name, operations in counted.items():
        print(harness.line(name, operations / counted["SupervisedTrainer"], None), flush=True)


def trainer_of(name: str) -> Any:
    """The class of a trainer."""
    return getattr(importlib.import_module(doorways()[name]), name)


def plain(name: str) -> bool:
    """Whether all students of a trainer are planned networks."""
    return all(student.network == PLANS for student in trainer_of(name).settings.students)


def count(args: Any, name: str) -> int:
    """Operations of one step of a trainer."""
    kind = trainer_of(name)
    trainer = make(args, kind, **CHANGES.get(name, {}))
    if issubclass(kind, SemiSupervisedTrainer):
        batch = make_batch(args, trainer)
    else:
        labeled = harness.make_batch(args)
        batch = {"data": labeled["data"], "target": labeled["target"][0]}
    print(f"counting {name}", flush=True)
    return harness.flop(lambda: trainer.train_step(batch))


if __name__ == "__main__":
    main()
