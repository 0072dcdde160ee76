"""A published Primus predicts with nnU-Net alone: this package cannot even be imported."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import finish_run, make_batch, make_plans, make_trainer

from nnunet_collab.core import checkpoint as checkpoints
from nnunet_collab.core.errors import CollabError
from nnunet_collab.inference.publish import publish_fold
from nnunet_collab.methods.supervised import SupervisedTrainer

pytestmark = pytest.mark.slow  # the smallest Primus has 23 million parameters

PREDICT = """
import sys
sys.modules["nnunet_collab"] = None  # importing it fails
import numpy, torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
folder, images, target = sys.argv[1:]
torch.set_num_threads(1)
predictor = nnUNetPredictor(use_mirroring=False, perform_everything_on_device=False, device=torch.device("cpu"))
predictor.initialize_from_trained_model_folder(folder, (0,), "checkpoint_final.pth")
with torch.no_grad():
    numpy.save(target, predictor.network.eval()(torch.from_numpy(numpy.load(images))).numpy())
assert not any(name.startswith("nnunet_collab") for name, module in sys.modules.items() if module)
"""


@pytest.fixture
def trainer(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda _: None)
    plans = make_plans()
    plans["configurations"]["3d_fullres"]["patch_size"] = [8, 32, 32]
    changes = {"students": [{"name": "Primus", "network": "primus_s", "optimizer": "adamw", "lr": 3e-4}]}
    trainer = make_trainer(
        SupervisedTrainer, tmp_path, monkeypatch, plans=plans, configuration="3d_fullres", changes=changes
    )
    trainer.train_step(make_batch(trainer))
    return trainer


def test_nnunet_alone_predicts_the_same_logits(trainer, tmp_path):
    fold = finish_run(trainer, files=["checkpoint_final.pth"])
    (published,) = publish_fold(fold)
    content = checkpoints.read(published / "checkpoint_final.pth")
    assert content["trainer_name"] == "nnUNet_Primus_S_Trainer"
    image = make_batch(trainer)["data"]
    np.save(tmp_path / "image.npy", image.numpy())
    environment = {k: v for k, v in os.environ.items() if not k.startswith("nnUNet_")}
    command = [sys.executable, "-c", PREDICT, published.parent, tmp_path / "image.npy", tmp_path / "logits.npy"]
    done = subprocess.run(list(map(str, command)), env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    with torch.no_grad():
        trained = trainer.group["Primus"].network.eval()(image)
    assert torch.equal(torch.from_numpy(np.load(tmp_path / "logits.npy")), trained)

    name = "students.Primus.network.eva.pos_embed"
    damaged = torch.load(fold / "checkpoint_final.pth", weights_only=True)
    del damaged["network_weights"][name]
    torch.save(damaged, fold / "checkpoint_final.pth")
    with pytest.raises(CollabError, match="must hold all weights of student Primus to publish it"):
        publish_fold(Path(fold))
