"""One round of self-training and its finish with nnU-Net's real commands and a trainer of nnU-Net's own kind."""

from __future__ import annotations

import csv
import json
import os
import shlex
import subprocess

import pytest
import torch
from e2e_nnunet import DATASETS, ROOT, Workspace, read_json, read_mask, remove, shrink

from nnunet_collab.demo.phantom import write_dataset

pytestmark = pytest.mark.slow

STOCK = '''
"""A trainer as nnU-Net's own variants are: nnUNetTrainer with fewer steps."""
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer


class ShortTrainer(nnUNetTrainer):
    def __init__(self, plans, configuration, fold, dataset_json, device):
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.num_epochs, self.num_iterations_per_epoch, self.num_val_iterations_per_epoch = 2, 3, 1
'''
SOURCE, NEW = f"Dataset{DATASETS['plain']}_plain", "Dataset910_plain_tiny_round1"


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    """Four labeled cases, one of them for validation, and three unlabeled images, planned and preprocessed."""
    root = tmp_path_factory.mktemp("self_train")
    raw = root / "raw" / SOURCE
    write_dataset(raw, n_train=4, n_test=0, seed=0, shape=(6, 48, 48), spacing_mm=(8, 3, 3), n_unlabeled=3)
    (root / "trainers").mkdir()
    (root / "trainers" / "ShortTrainer.py").write_text(STOCK)
    workspace = Workspace(root)
    plan = ("-d", DATASETS["plain"], "-c", "2d", "-np", 1, "-npfp", 1)
    workspace.run("nnUNetv2_plan_and_preprocess", *plan, workers=1, new=True)
    shrink(workspace.preprocessed("plain") / "nnUNetPlans.json")
    cases = sorted(path.name.removesuffix(".nii.gz") for path in (raw / "labelsTr").iterdir())
    split = [{"train": cases[:3], "val": cases[3:]}]
    (workspace.preprocessed("plain") / "splits_final.json").write_text(json.dumps(split))
    yield workspace
    remove(root)


def options(workspace):
    paths = os.pathsep.join([str(ROOT / "trainers"), str(workspace.root / "trainers")])
    return {"settings": None, "nnUNet_extTrainer": paths, "nnUNet_collab_settings": None, "nnUNet_npp": "1"}


def self_train(workspace, *words):
    request = ("-d", DATASETS["plain"], "-c", "2d", "-tr", "ShortTrainer", "--to", 910, "--name", "tiny", "--finish")
    folder = ("-o", workspace.root / "rounds", "--device", "cpu")
    command = ("python", "-m", "nnunet_collab", "self_train", *request, *folder, *words)
    return workspace.run(*command, **options(workspace)).out


def type_by_hand(workspace, printed):
    """Run the lines that a dry run printed; nnU-Net's commands as children of a process that has imported it."""
    for line in printed.splitlines():
        words = shlex.split(line, comments=True)
        if not words:
            continue
        if words[0] in ("rm", "mkdir", "mv", "touch"):
            subprocess.run(words, check=True)
        elif words[0] == "nnunet_collab":
            workspace.run("python", "-m", *words, **options(workspace))
        else:
            few = ("-npp", "0", "-nps", "0") if words[0] == "nnUNetv2_predict" else ()
            workspace.run(*words, *few, **options(workspace))


def test_a_round_and_its_finish_end_with_an_ordinary_model(workspace):
    # Fold `all`: no validation decides, so the round counts and is finished, whatever the tiny networks have learned.
    words = ("-f", "all", "--share", "0.6")
    printed = self_train(workspace, *words, "--dry-run")
    assert not (workspace.root / "rounds").exists()
    type_by_hand(workspace, printed)

    raw = workspace.root / "raw" / NEW
    with open(raw / "pseudo_labels.csv", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["origin"] == "pseudo label"]
    kept = {row["case"] for row in rows if row["in_dataset"] == "yes"}
    facts = read_json(raw / "dataset.json")
    assert len(rows) == 3
    assert set(facts["pseudo_labels"]["cases"]) == kept
    assert len(kept) in (1, 2)  # of three, without those in which nothing is found
    for case in kept:
        assert set(map(int, set(read_mask(raw / "labelsTr" / f"{case}.nii.gz").ravel()))) <= {
            0,
            *facts["labels"].values(),
        }

    # Started after that, it has nothing to do; the model predicts with stock nnU-Net.
    status = self_train(workspace, *words, "--status")
    folder = workspace.root / "results" / SOURCE / "ShortTrainer__nnUNetPlans_tiny_finish__2d"
    assert f"result   {folder} (round 1, trained further on the true labels alone)" in status
    assert self_train(workspace, *words, "--dry-run").splitlines()[-1].endswith("tiny: finished")
    line = next(line for line in status.splitlines() if line.startswith("predict "))
    predicted = workspace.root / "predicted"
    words = shlex.split(line)[1:]
    words[words.index("INPUT")] = str(workspace.root / "raw" / SOURCE / "imagesUn")
    words[words.index("OUTPUT")] = str(predicted)
    workspace.run(*words, "-device", "cpu", "-npp", 0, "-nps", 0, **options(workspace))
    assert len(list(predicted.glob("*.nii.gz"))) == 3

    # The finish started from the round's weights: after so few steps they are still close.
    begun, ended, other = (
        torch.load(place / "fold_all" / "checkpoint_final.pth", map_location="cpu", weights_only=False)[
            "network_weights"
        ]
        for place in (
            workspace.root / "results" / NEW / "ShortTrainer__nnUNetPlans__2d",
            folder,
            workspace.root / "results" / SOURCE / "ShortTrainer__nnUNetPlans__2d",
        )
    )
    first, last, round_0 = (checkpoint["network_weights"] for checkpoint in (begun, ended, other))
    name = next(name for name in first if name.endswith("conv.weight"))
    assert (first[name] - last[name]).norm() < 0.3 * (first[name] - round_0[name]).norm()


def test_folds_of_the_round_validate_on_true_labels(workspace):
    """nnU-Net reads the split that comes with the dataset; follows the test above, which has written it."""
    split = read_json(workspace.root / "preprocessed" / NEW / "splits_final.json")
    validation = read_json(workspace.preprocessed("plain") / "splits_final.json")[0]["val"]
    assert split[0]["val"] == validation
    words = (910, "2d", 0, "-tr", "ShortTrainer", "-device", "cpu")
    workspace.run("nnUNetv2_train", *words, **options(workspace))
    folder = workspace.root / "results" / NEW / "ShortTrainer__nnUNetPlans__2d" / "fold_0" / "validation"
    assert [path.name.removesuffix(".nii.gz") for path in folder.glob("*.nii.gz")] == validation
