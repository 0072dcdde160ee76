"""The mistakes that users make most, each made on purpose: what docs/common_mistakes.md says is what comes out here."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import SimpleITK as sitk
import torch
from locks import another_here, leave_lock
from teaching import make_method
from tiny import finish_run, make_dataset_json, make_trainer
from tiny_data import FOLD, full_plans, make_labels, save_case, write_data
from unlabeled_images import DATASET_JSON, SHAPE, make_dataset, save_image

from nnunet_collab.core.files import write_json
from nnunet_collab.core.presets import settings_from_environment
from nnunet_collab.methods.ctrcl import CTRCLTrainer
from nnunet_collab.methods.fixmatch import FixMatchTrainer
from nnunet_collab.methods.supervised import SupervisedTrainer

GRID = {"spacing": (1.0, 1.0, 2.0), "origin": (0.0, 0.0, 0.0), "direction": (1, 0, 0, 0, 1, 0, 0, 0, 1)}


class Mistake(NamedTuple):
    """Something a user does, and the function that does it: it raises CollabError, or runs a command by `lab.run`."""

    group: str
    did: str
    make: Callable[[Lab], None]


MISTAKES: list[Mistake] = []


def mistake(group, did):
    def register(function):
        MISTAKES.append(Mistake(group, did, function))
        return function

    return register


class Lab:
    """A place where mistakes are made: nnU-Net's folders, and the program."""

    def __init__(self, root, monkeypatch, main):
        self.root, self.monkeypatch, self._main = root, monkeypatch, main
        for variable in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
            monkeypatch.setenv(variable, str(root / variable))
            (root / variable).mkdir()

    def run(self, *words):
        return self._main([str(word) for word in words])

    def raw(self, **changes):
        """Dataset027_Heart with three labeled cases of three patients; returns its folder."""
        folder = self.root / "nnUNet_raw" / "Dataset027_Heart"
        for case in ("p1_a", "p2_a", "p3_a"):
            save_image(folder / "imagesTr" / f"{case}_0000.nii.gz", np.ones((2, 3, 4), np.float32))
            save_image(folder / "labelsTr" / f"{case}.nii.gz", np.ones((2, 3, 4), np.uint8))
        write_json(folder / "dataset.json", {**make_dataset_json(), "numTraining": 3, **changes})
        return folder

    def trainer(self, trainer_class=FixMatchTrainer, data=None, changes=None, **options):
        """A trainer on the tiny preprocessed dataset, before `on_train_start`."""
        write_data(self.root, full_plans(), make_dataset_json(), **(data or {}))
        return make_method(trainer_class, self.root, self.monkeypatch, changes=changes, plans=full_plans(), **options)

    def settings(self, trainer_class, text):
        """The settings of a trainer as the variable gives them."""
        self.monkeypatch.setenv("nnUNet_collab_settings", text)
        settings_from_environment(trainer_class.settings, trainer_class)

    def predictions(self, ending=".nii.gz", **header):
        """Folders of one prediction and its label; the prediction's header differs as said."""
        predicted, labels = self.root / "predicted", self.root / "labels"
        for folder, changes in ((predicted, header), (labels, {})):
            folder.mkdir()
            image = sitk.GetImageFromArray(np.pad(np.ones((3, 4, 5), np.uint8), 1))
            for name, value in {**GRID, **changes}.items():
                getattr(image, f"Set{name.capitalize()}")(value)
            sitk.WriteImage(image, str(folder / f"heart1{ending}"))
        write_json(predicted / "dataset.json", {**make_dataset_json(), "file_ending": ending})
        return predicted, labels

    def evaluate(self, predicted, labels):
        return self.run("evaluate", "-p", predicted, "-l", labels, "-np", 1)


DATASET, UNLABELED, TRAINING = "Dataset and split", "Unlabeled images", "Starting a training"
SETTINGS, RESULTS = "Settings", "Evaluation, report, study"


# ---------------------------------------------------------------- dataset and split


@mistake(DATASET, "The variables of nnU-Net are not set.")
def _no_variables(lab):
    lab.monkeypatch.delenv("nnUNet_raw")
    lab.run("split", "-d", 27, "--labeled", 1)


@mistake(DATASET, "The number of the dataset is wrong.")
def _no_dataset(lab):
    lab.raw()
    lab.run("split", "-d", 72, "--labeled", 1)


@mistake(DATASET, "A comma too many in `dataset.json`.")
def _trailing_comma(lab):
    (lab.raw() / "dataset.json").write_text('{"labels": {"background": 0, "heart": 1,}}')
    lab.run("split", "-d", 27, "--audit")


@mistake(DATASET, "`dataset.json` without `labels`.")
def _no_labels(lab):
    folder = lab.raw()
    content = {key: value for key, value in make_dataset_json().items() if key != "labels"}
    write_json(folder / "dataset.json", content)
    lab.run("split", "-d", 27, "--labeled", 1, "--to", 28)


@mistake(DATASET, "A name in `--labeled` that no patient has.")
def _unknown_patient(lab):
    lab.raw(patient_pattern=r"(p\d)_.*")
    lab.run("split", "-d", 27, "--labeled", "p9", "--to", 28)


@mistake(DATASET, "More labeled patients than there are.")
def _too_many(lab):
    lab.raw(patient_pattern=r"(p\d)_.*")
    lab.run("split", "-d", 27, "--labeled", 5, "--to", 28)


@mistake(DATASET, "A label file whose values are no whole numbers (a probability map, a resampled label).")
def _float_labels(lab):
    folder = lab.raw()
    save_image(folder / "labelsTr" / "p1_a.nii.gz", np.full((2, 3, 4), 0.4, np.float32))
    lab.run("split", "-d", 27, "--labeled", "p1_a", "--to", 28)


# ---------------------------------------------------------------- unlabeled images


@mistake(UNLABELED, "`preprocess_unlabeled` before `nnUNetv2_plan_and_preprocess`.")
def _not_planned(lab):
    _, preprocessed = make_dataset(lab.root, cases=("a",))
    (preprocessed / "nnUNetPlans.json").unlink()
    lab.run("preprocess_unlabeled", "-d", 7, "-c", "2d")


@mistake(UNLABELED, "`-c` names a configuration that was not planned.")
def _no_configuration(lab):
    make_dataset(lab.root, cases=("a",))
    lab.run("preprocess_unlabeled", "-d", 7, "-c", "3d_lowres")


@mistake(UNLABELED, "DICOM files in `imagesUn`.")
def _dicom(lab):
    raw, _ = make_dataset(lab.root, cases=("a",))
    (raw / "imagesUn" / "IM0001.dcm").touch()
    lab.run("preprocess_unlabeled", "-d", 7, "-c", "2d")


@mistake(UNLABELED, "A channel of an unlabeled case is missing.")
def _channel(lab):
    raw, _ = make_dataset(lab.root, cases=("a", "b"))
    (raw / "imagesUn" / "b_0001.nii.gz").unlink()
    lab.run("preprocess_unlabeled", "-d", 7, "-c", "2d")


@mistake(UNLABELED, "An unlabeled image that was cut off while it was copied.")
def _cut_image(lab):
    raw, _ = make_dataset(lab.root, cases=("a", "b"))
    _cut(raw / "imagesUn" / "b_0000.nii.gz")
    lab.run("preprocess_unlabeled", "-d", 7, "-c", "2d", "-np", 1)


@mistake(UNLABELED, "An unlabeled image with NaN or infinite voxels.")
def _nan_image(lab):
    raw, preprocessed = make_dataset(lab.root, cases=("a",))
    for channel in range(2):
        (raw / "imagesUn" / f"a_{channel:04d}.nii.gz").unlink()
    for folder in (raw, preprocessed):
        write_json(folder / "dataset.json", {**DATASET_JSON, "file_ending": ".nrrd"})
    for channel in range(2):
        voxels = np.ones(SHAPE, np.float32)
        voxels[1, 2, 3] = np.nan
        save_image(raw / "imagesUn" / f"b_{channel:04d}.nrrd", voxels)
    lab.run("preprocess_unlabeled", "-d", 7, "-c", "2d", "-np", 1)


@mistake(UNLABELED, "A training with unlabeled images before `preprocess_unlabeled`.")
def _nothing_unlabeled(lab):
    roles = {**FOLD, "unlabeled": []}
    lab.trainer(data={"fold": roles, "extra": {}}).get_dataloaders()


# ---------------------------------------------------------------- starting a training


@mistake(TRAINING, "The dataset was not preprocessed.")
def _not_preprocessed(lab):
    trainer = make_method(SupervisedTrainer, lab.root, lab.monkeypatch)
    trainer.on_train_start()


@mistake(TRAINING, "A case is in two roles of `splits_final.json`.")
def _two_roles(lab):
    lab.trainer(data={"fold": {**FOLD, "train": ["a", "u"]}}).on_train_start()


@mistake(TRAINING, "A fold of `splits_final.json` without validation cases.")
def _empty_role(lab):
    trainer = lab.trainer()
    write_json(lab.root / "nnUNet_preprocessed" / "Dataset001_Tiny" / "splits_final.json", [{**FOLD, "val": []}])
    trainer.on_train_start()


@mistake(TRAINING, "`splits_final.json` names a case that is not preprocessed.")
def _unknown_case(lab):
    lab.trainer(data={"fold": {**FOLD, "train": ["a", "b", "case9"]}}).on_train_start()


@mistake(TRAINING, "A label that `dataset.json` does not know.")
def _wrong_label(lab):
    trainer = lab.trainer()
    folder = lab.root / "nnUNet_preprocessed" / "Dataset001_Tiny" / "nnUNetPlans_2d"
    for path in folder.glob("a*"):
        path.unlink()
    labels = make_labels()
    labels[0, 3, 4, 4] = 7
    save_case(folder, "a", 0, labels)
    trainer.on_train_start()


@mistake(TRAINING, "A preprocessed file is damaged.")
def _damaged_case(lab):
    trainer = lab.trainer()
    _cut(lab.root / "nnUNet_preprocessed" / "Dataset001_Tiny" / "nnUNetPlans_2d" / "b.b2nd")
    trainer.on_train_start()


@mistake(TRAINING, "The same training is started a second time while it runs.")
def _second_start(lab):
    trainer = lab.trainer()
    folder = lab.root / "nnUNet_results" / "Dataset001_Tiny" / "FixMatchTrainer__nnUNetPlans__2d" / "fold_0"
    leave_lock(folder, another_here())
    trainer.on_train_start()


@mistake(TRAINING, "A cascade.")
def _cascade(lab):
    make_trainer(CTRCLTrainer, lab.root, lab.monkeypatch, configuration="3d_cascade_fullres")


@mistake(TRAINING, "`--c` with a checkpoint that was cut off.")
def _cut_checkpoint(lab):
    trainer = make_trainer(CTRCLTrainer, lab.root, lab.monkeypatch)
    path = finish_run(trainer) / "checkpoint_final.pth"
    _cut(path)
    trainer.load_checkpoint(str(path))


@mistake(TRAINING, "`--c` with other settings.")
def _other_settings(lab):
    path = finish_run(make_trainer(CTRCLTrainer, lab.root, lab.monkeypatch)) / "checkpoint_final.pth"
    make_trainer(CTRCLTrainer, lab.root, lab.monkeypatch, changes={"beta": 2.0}).load_checkpoint(str(path))


class Stranger:
    """Something that is no tensor: a file that holds it could run anything."""


@mistake(TRAINING, "`frozen` names a file that could run code.")
def _pickle(lab):
    path = lab.root / "downloaded.pth"
    torch.save({"network_weights": {}, "author": Stranger()}, path, pickle_module=pickle)
    make_trainer(
        CTRCLTrainer,
        lab.root,
        lab.monkeypatch,
        changes={"students": {"CNN": {"frozen": str(path)}, "Transformer": {"network": "segformer_b0"}}},
    )


# ---------------------------------------------------------------- settings


@mistake(SETTINGS, "A setting is misspelled.")
def _misspelled(lab):
    lab.settings(FixMatchTrainer, '{"tua": 0.9}')


@mistake(SETTINGS, "Quotes are missing in `nnUNet_collab_settings`.")
def _no_quotes(lab):
    lab.settings(FixMatchTrainer, "{tau: 0.9}")


@mistake(SETTINGS, "A value out of its bounds.")
def _out_of_bounds(lab):
    lab.settings(FixMatchTrainer, '{"tau": 95}')


@mistake(SETTINGS, "A training without unlabeled samples.")
def _no_unlabeled_samples(lab):
    lab.settings(FixMatchTrainer, '{"unlabeled_batch_size": 0}')


@mistake(SETTINGS, "A setting that has no effect beside another one.")
def _no_effect(lab):
    lab.settings(FixMatchTrainer, '{"ema_decay": 0.9}')


@mistake(SETTINGS, "A student that the trainer does not have.")
def _unknown_student(lab):
    lab.settings(FixMatchTrainer, '{"students": {"Transformer": {"lr": 0.001}}}')


@mistake(SETTINGS, "A preset of another trainer.")
def _other_preset(lab):
    lab.settings(FixMatchTrainer, "crossmatch_acdc")


@mistake(SETTINGS, "A patch that the network cannot divide.")
def _patch(lab):
    make_method(SupervisedTrainer, lab.root, lab.monkeypatch, changes={"patch_size": [30, 32]})


# ---------------------------------------------------------------- evaluation, report, study


@mistake(RESULTS, "A prediction that was cut off is evaluated.")
def _cut_prediction(lab):
    predicted, labels = lab.predictions()
    _cut(predicted / "heart1.nii.gz")
    lab.evaluate(predicted, labels)


@mistake(RESULTS, "Predictions and labels are stored in different orientations.")
def _mirrored(lab):
    lab.evaluate(*lab.predictions(direction=(-1, 0, 0, 0, 1, 0, 0, 0, 1)))


@mistake(RESULTS, "Predictions have another spacing than the labels.")
def _spacing(lab):
    lab.evaluate(*lab.predictions(spacing=(1.5, 1.5, 2.0)))


@mistake(RESULTS, "A prediction is missing.")
def _missing_prediction(lab):
    predicted, labels = lab.predictions()
    (labels / "heart1.nii.gz").rename(labels / "heart2.nii.gz")
    sitk.WriteImage(sitk.ReadImage(str(labels / "heart2.nii.gz")), str(labels / "heart1.nii.gz"))
    lab.evaluate(predicted, labels)


@mistake(RESULTS, "A report of a folder without results.")
def _no_results(lab):
    lab.run("report", lab.root / "nnUNet_results", "-o", lab.root / "report")


@mistake(RESULTS, "`publish` of a training that is not finished.")
def _unfinished(lab):
    trainer = make_trainer(CTRCLTrainer, lab.root, lab.monkeypatch)
    fold = finish_run(trainer, files=("checkpoint_latest.pth",))
    lab.run("publish", fold)


@mistake(RESULTS, "A key of a study is misspelled.")
def _study_key(lab):
    path = lab.root / "study.toml"
    path.write_text('name = "heart"\ndataset = 27\nconfiguration = "2d"\nstep = 100\n')
    lab.run("study", path)


def _cut(path):
    """Keep 60 % of a file."""
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * 0.6)])
