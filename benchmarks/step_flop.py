"""Operations of a step of every trainer, relative to stock nnU-Net's step on the labeled half of the batch.

python benchmarks/step_flop.py --scale 2d_counted
python benchmarks/step_flop.py --scale 3d_counted

Counted are the convolutions and matrix products, forward and backward, with the default networks of each trainer.
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
from nnunet_collab.training.semi_supervised import SemiSupervisedTrainer

CHANGES: dict[str, dict[str, Any]] = {"CRLNTrainer": ALL_VOXELS}  # random weights are never sure


def main() -> None:
    """Count and print the table."""
    args = harness.arguments(__doc__)
    with tempfile.TemporaryDirectory() as folder:
        for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
            os.environ[name] = str(Path(folder, name))
        counted = {name: count(args, name) for name in ["SupervisedTrainer", *sorted(doorways())]}
    print(f"{args.scale} {harness.SCALES[args.scale]}, labeled half of the batch")
    for name, (operations, students) in counted.items():
        print(harness.line(f"{name} ({students})", operations / counted["SupervisedTrainer"][0], None), flush=True)


def count(args: Any, name: str) -> tuple[int, str]:
    """Operations of one step of a trainer, and its networks."""
    kind = getattr(importlib.import_module(doorways()[name]), name)
    trainer = make(args, kind, **CHANGES.get(name, {}))
    if issubclass(kind, SemiSupervisedTrainer):
        batch = make_batch(args, trainer)
    else:
        half = harness.SCALES[args.scale]["batch"] // 2
        whole = harness.make_batch(args)
        batch = {"data": whole["data"][:half], "target": whole["target"][0][:half]}
    networks = ", ".join(student.network for student in trainer.settings.students)
    operations = harness.flop(lambda: trainer.train_step(batch))
    print(f"counted {name}", flush=True)
    return operations, networks


if __name__ == "__main__":
    main()
