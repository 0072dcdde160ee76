"""A results folder with a model that can be handed on: a published student, or a model of nnU-Net itself."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any, NamedTuple

from nnunet_collab.core import checkpoint as checkpoints
from nnunet_collab.core.errors import CollabError, listed
from nnunet_collab.core.json_files import read_json_object
from nnunet_collab.core.nnunet_folders import read_dataset_json, read_plans

CHECKPOINT = "checkpoint_final.pth"
SUMMARY = Path("validation") / "summary.json"
# What nnU-Net's export puts into the zip. It ends in an exception where one of them is missing.
_OF_FOLD = (CHECKPOINT, "progress.png")
_OF_MODEL = ("plans.json", "dataset.json", "dataset_fingerprint.json")
_FIX = "Name the results folder of a finished training."


class Model(NamedTuple):
    """A model of nnU-Net on the disk.

    Attributes:
        folder: `<results>/<dataset>/<Trainer>__<plans>__<configuration>`.
        folds: Names of the folds to hand on, such as `fold_0`.
        plans: Content of plans.json.
        dataset: Content of dataset.json.
    """

    folder: Path
    folds: tuple[str, ...]
    plans: dict[str, Any]
    dataset: dict[str, Any]

    @property
    def dataset_name(self) -> str:
        """Such as `Dataset027_ACDC`."""
        return self.folder.parent.name

    @property
    def trainer(self) -> str:
        """Name with which `nnUNetv2_predict -tr` finds it."""
        return self.folder.name.split("__")[0]

    @property
    def plans_name(self) -> str:
        """Such as `nnUNetPlans`."""
        return self.folder.name.split("__")[1]

    @property
    def configuration(self) -> str:
        """Such as `2d`."""
        return self.folder.name.split("__")[2]

    @property
    def network_class(self) -> str:
        """Dotted path of the class of its network, or an empty text if the plans do not say."""
        entry = self.plans["configurations"].get(self.configuration, {})
        return str(entry.get("architecture", {}).get("network_class_name", ""))

    @property
    def predicts_without_this_package(self) -> bool:
        """Whether nnU-Net alone can build its network."""
        return self.network_class.startswith("dynamic_network_architectures.")

    def checkpoint(self, fold: str) -> dict[str, Any]:
        """Content of the final checkpoint of a fold, on the CPU."""
        return checkpoints.read(self.folder / fold / CHECKPOINT)


def find_model(run: Path, student: str | None, folds: list[str] | None) -> Model:
    """The model that a folder holds, or that a training published.

    Args:
        run: Results folder of a published student, of a training of this package, or of a model of nnU-Net.
        student: Name of the student of a training; None if it published one alone.
        folds: Folds to hand on, such as `0` or `all`; None for all that are finished.

    Raises:
        CollabError: If it is no results folder, if its files are not complete, or if it is not clear which student is
            meant. All faults of the folder are in one message.
    """
    folder = Path(os.path.abspath(run))  # its name tells what it is, so `.` is replaced; links are not resolved
    if not folder.is_dir() or folder.name.count("__") != 2 or not re.fullmatch(r"Dataset\d{3}_.+", folder.parent.name):
        found = "its name is another" if folder.is_dir() else "there is no such folder"
        raise CollabError(
            f"{folder}: RUN must be <Trainer>__<plans>__<configuration> in a folder DatasetXXX_NAME of nnUNet_results; "
            f"{found}. Correct the path."
        )
    folder = _of_student(folder, student)
    finished = sorted(path.parent.name for path in folder.glob(f"fold_*/{CHECKPOINT}"))
    chosen = tuple(f"fold_{fold}" for fold in folds) if folds else tuple(finished)
    _require_files(folder, chosen, finished)
    model = Model(folder, chosen, read_plans(folder / "plans.json", _FIX), read_dataset_json(folder / "dataset.json"))
    if model.configuration not in model.plans["configurations"]:
        raise CollabError(
            f"{folder / 'plans.json'}: must describe the configuration {model.configuration}; it describes "
            f"{', '.join(model.plans['configurations'])}. {_FIX}"
        )
    return model


def _of_student(folder: Path, student: str | None) -> Path:
    """The folder of the student, if this is the folder of a training of several."""
    record = read_json_object(folder / "plans.json", _FIX).get(checkpoints.KEY)
    if record is None or "student" in record:
        if student is not None and (record or {}).get("student") != student:
            raise CollabError(
                f"{folder}: --student chooses a student of a training; this folder holds one model. Leave it out."
            )
        return folder
    trainer, rest = folder.name.split("__", 1)
    there = {
        path.name.split("__")[0][len(trainer) + 1 :]: path
        for path in sorted(folder.parent.glob(f"{trainer}_*__{rest}"))
    }
    published = {name: path for name, path in there.items() if name in record.get("students", {})}
    if student is None and len(published) == 1:
        return next(iter(published.values()))
    if student is None or student not in published:
        found = "none was given" if student is None else f"it is {student}"
        raise CollabError(
            f"{folder}: this is a training, and one student is handed on at a time. --student must be one of its "
            f"published students, {', '.join(published) or 'of which there are none'}; {found}. "
            f"`nnunet_collab publish {folder}` publishes them again."
        )
    return published[student]


def _require_files(folder: Path, folds: tuple[str, ...], finished: list[str]) -> None:
    if not folds:
        raise CollabError(f"{folder}: must hold a fold_X with a {CHECKPOINT}; it holds none. Finish the training.")
    wanted = [Path(name) for name in _OF_MODEL] + [Path(fold) / name for fold in folds for name in _OF_FOLD]
    if missing := [str(path) for path in wanted if not (folder / path).is_file()]:
        raise CollabError(
            f"{folder}: nnU-Net's zip needs these files, which are missing: {listed(missing, 10)}. The finished folds "
            f"are {', '.join(finished) or 'none'}. Choose folds with -f, or finish the training; "
            f"`nnunet_collab publish` makes a student's folder again."
        )
