"""nnUNetv2_train, killed as by `kill -9` at the moment that the first argument names.

python killed_train.py step:6 901 2d 0 -tr CTRCLTrainer                    as the sixth step of any optimizer begins
python killed_train.py save:checkpoint_final.pth 901 2d 0 -tr CTRCLTrainer  with half of that checkpoint written
"""

from __future__ import annotations

import io
import itertools
import os
import signal
import sys

import torch
from nnunetv2.run.run_training import run_training_entry
from torch.optim.optimizer import register_optimizer_step_pre_hook

from nnunet_collab import launch


def die():
    os.killpg(os.getpgrp(), signal.SIGKILL)  # with the processes that load data, which would live on


def die_at_step(number):
    steps = itertools.count(1)
    register_optimizer_step_pre_hook(lambda *_: die() if next(steps) == number else None)


def die_while_saving(name):
    save = torch.save

    def save_half(content, file, *args, **kwargs):
        if name not in str(file):
            return save(content, file, *args, **kwargs)
        whole = io.BytesIO()
        save(content, whole, *args, **kwargs)
        with open(file, "wb") as half:
            half.write(whole.getvalue()[: whole.tell() // 2])
        return die()

    torch.save = save_half


if __name__ == "__main__":
    moment, value = sys.argv.pop(1).split(":")
    if os.environ.get("RANK", "0") != "0":
        pass
    elif moment == "step":
        die_at_step(int(value))
    else:
        die_while_saving(value)
    sys.exit(launch.main() if "RANK" in os.environ else run_training_entry())
