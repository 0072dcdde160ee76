"""nnunet_collab.launch, where each process also writes down what it trained on, in `FOLDER/rank_<number>.json`.

torchrun --standalone --nproc_per_node=2 launch_watched.py FOLDER 901 2d 0 -tr MeanTeacherTrainer -device cpu
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from nnunet_collab import launch
from nnunet_collab.training.trainer import CollabTrainer


def watch_steps():
    """A list that every training step adds its batch to: the cases, and the sum of the unlabeled intensities."""
    steps, take = [], CollabTrainer.train_step

    def train_step(trainer, batch):
        cases = {name: [str(case) for case in batch[name]] for name in ("keys", "keys_unlabeled")}
        assert len(batch["data"]) == len(cases["keys"])
        assert len(batch["views"]) == len(cases["keys_unlabeled"])
        steps.append({**cases, "sum": float(batch["views"].double().sum())})
        return take(trainer, batch)

    CollabTrainer.train_step = train_step
    return steps


if __name__ == "__main__":
    folder = Path(sys.argv.pop(1))
    steps = watch_steps()
    code = launch.main()
    (folder / f"rank_{os.environ['RANK']}.json").write_text(json.dumps(steps))
    sys.exit(code)
