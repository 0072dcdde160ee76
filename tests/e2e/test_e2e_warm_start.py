"""nnUNetv2_train from given weights: killed, and continued without the file, it ends where the other way ends."""

from __future__ import annotations

import signal

import pytest
from e2e_nnunet import DATASETS, KILLED_TRAIN, TINY, Training, differing_tensors

pytestmark = pytest.mark.slow


def test_the_setting_and_nnunets_argument_start_alike_and_a_continued_run_needs_no_file(workspace, trainings):
    source = trainings["plain", "2d"].fold / "checkpoint_final.pth"
    students = {
        "CNN": {"start_from": str(trainings["plain", "2d"].student("CNN"))},
        "Transformer": {"network": "segformer_b0", "start_from": str(source)},
    }
    done = workspace.train("plain", "2d", group="started", settings={**TINY, "students": students})
    uninterrupted = Training(workspace, "plain", "2d", done, "started")
    assert done.out.count(" of the encoder's parameters, ") >= 2

    copied = workspace.root / "given.pth"
    copied.write_bytes(source.read_bytes())
    arguments = (DATASETS["plain"], "2d", 0, "-tr", "CTRCLTrainer", "-device", "cpu", "-pretrained_weights", copied)
    done = workspace.run(KILLED_TRAIN, "step:6", *arguments, fails=True, settings=TINY, group="given")
    assert done.code == -signal.SIGKILL, done.err
    copied.unlink()
    done = workspace.train("plain", "2d", "--c", group="given", new=True)
    continued = Training(workspace, "plain", "2d", done, "given")

    ours, theirs = continued.checkpoint(), uninterrupted.checkpoint()
    assert differing_tensors(ours["network_weights"], theirs["network_weights"]) == []
    first = trainings["plain", "2d"].checkpoint()["network_weights"]
    assert len(differing_tensors(ours["network_weights"], first)) > 10
    origins = ours["nnunet_collab"]["weights_from"]
    assert all(origins[name].startswith(f"started from {copied} (CTRCLTrainer; ") for name in ("CNN", "Transformer"))
    assert continued.checkpoint("CNN")["nnunet_collab"]["weights_from"] == origins
