"""One round of self-training and its finish with nnU-Net's real commands and a trainer of nnU-Net's own kind."""

from __future__ import annotations

import csv
import json
import os
import shlex
import subprocess

import pytest
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
    """Run the lines that a dry run printed; nnU-Net's commands as children of a process that has imported it.

    Returns:
        What each command printed.
    """
    outputs = []
    for line in printed.splitlines():
        words = shlex.split(line, comments=True)
        if not words:
            continue
        if words[0] in ("rm", "mkdir", "mv", "touch"):
            subprocess.run(words, check=True)
        elif words[0] == "nnunet_collab":
            outputs.append(workspace.run("python", "-m", *words, **options(workspace)).out)
        else:
            few = ("-npp", "0", "-nps", "0") if words[0] == "nnUNetv2_predict" else ()
            outputs.append(workspace.run(*words, *few, **options(workspace)).out)
    return outputs


# Fold `all`: no validation decides, so the round counts and is finished, whatever the tiny networks have learned.
FOLD_ALL = ("-f", "all", "--share", "0.6")


@pytest.fixture(scope="module")
def typed(workspace):
    """The outputs of the lines of a dry run, in the workspace."""
    printed = self_train(workspace, *FOLD_ALL, "--dry-run")
    assert not (workspace.root / "rounds").exists()
    return type_by_hand(workspace, printed)


def test_a_dataset_of_pseudo_labels(workspace, typed):
    raw = workspace.root / "raw" / NEW
    with open(raw / "pseudo_labels.csv", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["origin"] == "pseudo label"]
    kept = {row["case"] for row in rows if row["in_dataset"] == "yes"}
    facts = read_json(raw / "dataset.json")
    assert len(rows) == 3
    assert set(facts["pseudo_labels"]["cases"]) == kept
    assert len(kept) in (1, 2)  # of three, without those in which nothing is found
    for case in kept:
        values = {int(value) for value in read_mask(raw / "labelsTr" / f"{case}.nii.gz").ravel()}
        assert values <= {*facts["labels"].values()}


def test_it_ends_with_an_ordinary_model(workspace, typed):
    status = self_train(workspace, *FOLD_ALL, "--status")
    folder = workspace.root / "results" / SOURCE / "ShortTrainer__nnUNetPlans_tiny_finish__2d"
    assert f"result   {folder} (round 1, trained further on the true labels alone)" in status
    assert self_train(workspace, *FOLD_ALL, "--dry-run").splitlines()[-1].endswith("tiny: finished")
    line = next(line for line in status.splitlines() if line.startswith("predict "))
    words = shlex.split(line)[1:]
    words[words.index("INPUT")] = str(workspace.root / "raw" / SOURCE / "imagesUn")
    words[words.index("OUTPUT")] = str(workspace.root / "predicted")
    workspace.run(*words, "-device", "cpu", "-npp", 0, "-nps", 0, **options(workspace))
    assert len(list((workspace.root / "predicted").glob("*.nii.gz"))) == 3


def test_the_finish_starts_from_the_weights_of_the_round(workspace, typed):
    """nnU-Net says which file it has loaded, and takes all of its weights."""
    checkpoint = (
        workspace.root / "results" / NEW / "ShortTrainer__nnUNetPlans__2d" / "fold_all" / "checkpoint_final.pth"
    )
    (said,) = (out for out in typed if "Loading pretrained weights from file" in out)
    assert f"Loading pretrained weights from file  {checkpoint}" in said


def test_folds_of_the_round_validate_on_true_labels(workspace, typed):
    """nnU-Net reads the split that comes with the dataset."""
    split = read_json(workspace.root / "preprocessed" / NEW / "splits_final.json")
    validation = read_json(workspace.preprocessed("plain") / "splits_final.json")[0]["val"]
    assert split[0]["val"] == validation
    workspace.run("nnUNetv2_train", 910, "2d", 0, "-tr", "ShortTrainer", "-device", "cpu", **options(workspace))
    folder = workspace.root / "results" / NEW / "ShortTrainer__nnUNetPlans__2d" / "fold_0" / "validation"
    assert [path.name.removesuffix(".nii.gz") for path in folder.glob("*.nii.gz")] == validation
