"""The whole workflow in minutes: a phantom dataset, nnU-Net's own commands, a table and two figures."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nnunet_collab.core.files import write_json
from nnunet_collab.core.image_io import read_image
from nnunet_collab.demo.methods import METHODS, Method, Training
from nnunet_collab.demo.phantom import write_dataset
from nnunet_collab.demo.workspace import Commands, chosen_device, environment, make_room
from nnunet_collab.evaluation.folders import evaluate_folders
from nnunet_collab.evaluation.metrics import summarize
from nnunet_collab.figures.learning_curves import learning_curves_figure
from nnunet_collab.figures.overlays import OverlayRow, largest_slice, overlay_figure

if TYPE_CHECKING:
    import pandas as pd

DATASET_ID = 1
DATASET = "Dataset001_Phantom"
PLANS, CONFIGURATION = "nnUNetPlans", "2d"
TEST_CASES = 6


def run_demo(folder: Path, *, method: str, device: str, overwrite: bool) -> None:
    """Make data, plan, train, predict, ensemble, evaluate, draw.

    A method that learns from unlabeled images gets few labeled and many unlabeled cases. It is compared with nnU-Net's
    training of the same network on the labeled cases alone, for the same number of iterations.

    Args:
        folder: Folder for all files.
        method: A key of `demo.methods.METHODS`.
        device: `auto`, or a value of nnU-Net's `-device`.
        overwrite: Replace the folder of an earlier demo.

    Raises:
        CollabError: If the folder must not be replaced, or one of nnU-Net's commands fails.
    """
    began = time.time()
    chosen = METHODS[method]
    device = chosen_device(device)
    folder = folder.resolve()
    make_room(folder, overwrite)
    paths = {
        name: folder / name.removeprefix("nnUNet_") for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")
    }
    run = Commands(folder / "logs", environment(paths), began)
    raw = paths["nnUNet_raw"] / DATASET
    _make_data(run, raw, paths["nnUNet_preprocessed"] / DATASET, chosen)

    predictions = {}
    if chosen.baseline is not None:
        run.step(f"training with labels alone on {device}")
        _train(run, chosen.baseline, device)
        predictions["labels"] = _predict(run, folder, "labels", _published(chosen.baseline)[0], device)
    training = chosen.training
    run.step(f"training {' and '.join(training.students)} with {training.trainer} on {device}")
    _train(run, training, device)
    for student, trainer in zip(training.students, _published(training), strict=True):
        predictions[student] = _predict(run, folder, student, trainer, device)
    if len(training.students) > 1:
        predictions["both"] = _predict(run, folder, "both", training.trainer, device)
        run.step("averaging their predictions with nnUNetv2_ensemble")
        predictions["ensemble"] = folder / "predictions" / "ensemble"
        inputs = [predictions[student] for student in training.students]
        run("ensemble", "nnUNetv2_ensemble", "-i", *inputs, "-o", predictions["ensemble"], "-np", 1)
    run.step("evaluating")
    frames = {
        name: evaluate_folders(path, raw / "labelsTs", dataset_json=raw / "dataset.json", processes=1, progress=False)
        for name, path in predictions.items()
    }
    # Both ways to combine the students give similar results; the figure shows one.
    drawn = {name: path for name, path in predictions.items() if name != "both"}
    titles = _titles(chosen)
    learned = training.trainer.removesuffix("Trainer")
    short = {name: title.removesuffix(" student").removeprefix("nnUNetv2_") for name, title in titles.items()}
    short = {name: title if name == "labels" else f"{learned} / {title}" for name, title in short.items()}
    _draw_overlays(folder, raw, {short[n]: path for n, path in drawn.items()}, {short[n]: f for n, f in frames.items()})
    fold = paths["nnUNet_results"] / DATASET / f"{training.trainer}__{PLANS}__{CONFIGURATION}" / "fold_0"
    learning_curves_figure(json.loads((fold / "curves.json").read_text()), folder / "learning_curves.png")
    _print_table({titles[name]: frame for name, frame in frames.items()}, TEST_CASES)
    minutes = (time.time() - began) / 60
    print(f"\nFigures: {folder / 'overlays.png'}\n         {folder / 'learning_curves.png'}")
    print(f"Models:  {paths['nnUNet_results'] / DATASET}\nDone in {minutes:.1f} minutes.")


def _make_data(run: Commands, raw: Path, preprocessed: Path, method: Method) -> None:
    """Make the phantoms, plan and preprocess them."""
    unlabeled = f" (one of them for validation), {method.unlabeled} unlabeled" if method.unlabeled else ""
    run.step(f"making {method.labeled} labeled{unlabeled} and {TEST_CASES} test cases of a cardiac phantom")
    write_dataset(raw, n_train=method.labeled, n_test=TEST_CASES, n_unlabeled=method.unlabeled, seed=0)
    run.step("planning and preprocessing")
    run(
        "plan", "nnUNetv2_plan_and_preprocess", "-d", DATASET_ID, "-c", CONFIGURATION, "-np", 2, "-npfp", 2,
        "--verify_dataset_integrity",
    )  # fmt: skip
    if method.unlabeled:
        command = ("nnunet_collab", "preprocess_unlabeled", "-d", DATASET_ID, "-c", CONFIGURATION, "-np", 2)
        run("preprocess_unlabeled", *command)
        # Too few cases for nnU-Net's own split; the last one is for validation.
        cases = sorted(path.name.removesuffix(".nii.gz") for path in (raw / "labelsTr").glob("*.nii.gz"))
        write_json(preprocessed / "splits_final.json", [{"train": cases[:-1], "val": cases[-1:]}])


def _train(run: Commands, training: Training, device: str) -> None:
    command = ("nnUNetv2_train", DATASET_ID, CONFIGURATION, 0, "-tr", training.trainer, "-device", device)
    settings = {"nnUNet_collab_settings": json.dumps(training.settings)}
    run(f"train_{training.trainer}", *command, variables=settings, echo=_epoch_line)


def _published(training: Training) -> list[str]:
    return [f"{training.trainer}_{student}" for student in training.students]


def _predict(run: Commands, folder: Path, name: str, trainer: str, device: str) -> Path:
    run.step(f"predicting the test cases with {trainer}")
    images, target = folder / "raw" / DATASET / "imagesTs", folder / "predictions" / name
    run(
        f"predict_{name}", "nnUNetv2_predict", "-d", DATASET_ID, "-c", CONFIGURATION, "-f", 0, "-tr", trainer,
        "-i", images, "-o", target, "-device", device, "-npp", 1, "-nps", 1, "--save_probabilities",
    )  # fmt: skip
    return target


def _titles(method: Method) -> dict[str, str]:
    students = {name: f"{name} student" for name in method.training.students}
    return {"labels": "labels alone", **students, "both": "both, one pass", "ensemble": "nnUNetv2_ensemble"}


def _epoch_line(line: str) -> str | None:
    """The training's log of an epoch, in one line."""
    return line.partition(": ")[2].strip() if "pseudo Dice: " in line else None


def _draw_overlays(
    folder: Path, raw: Path, predictions: Mapping[str, Path], frames: Mapping[str, pd.DataFrame]
) -> None:
    cases = sorted(path.name.removesuffix(".nii.gz") for path in (raw / "labelsTs").glob("*.nii.gz"))
    overlay_figure([_row(case, raw, predictions, frames) for case in cases[:3]], folder / "overlays.png")


def _row(case: str, raw: Path, predictions: Mapping[str, Path], frames: Mapping[str, pd.DataFrame]) -> OverlayRow:
    import SimpleITK as sitk

    image = read_image(raw / "imagesTs" / f"{case}_0000.nii.gz")
    read = {name: _array(path / f"{case}.nii.gz") for name, path in predictions.items()}
    truth = _array(raw / "labelsTs" / f"{case}.nii.gz")
    z = largest_slice(truth)
    dice = {name: float(frames[name].loc[frames[name]["case"] == case, "dice"].mean()) for name in predictions}
    return OverlayRow(
        case=case,
        image=sitk.GetArrayFromImage(image)[z],
        truth=truth[z],
        predictions={name: labels[z] for name, labels in read.items()},
        dice=dice,
        spacing_mm=(image.GetSpacing()[1], image.GetSpacing()[0]),
        slice_of=(z + 1, len(truth)),
    )


def _array(path: Path) -> Any:
    import SimpleITK as sitk

    return sitk.GetArrayFromImage(read_image(path))


def _print_table(frames: Mapping[str, pd.DataFrame], cases: int) -> None:
    """Dice per class, mean and standard deviation over the test cases."""
    summaries = {name: summarize(frame) for name, frame in frames.items()}
    classes = list(dict.fromkeys(next(iter(summaries.values()))["class"]))
    print(f"\nDice on {cases} cases held out from training, mean ± standard deviation over the cases\n")
    print(f"{'':22}" + "".join(f"{name:>16}" for name in classes))
    for name, summary in summaries.items():
        values = summary.set_index(["class", "statistic"])["dice"]
        cells = [_cell(values.get((c, "mean"), np.nan), values.get((c, "std"), np.nan)) for c in classes]
        print(f"{name:22}" + "".join(f"{cell:>16}" for cell in cells))


def _cell(mean: float, spread: float) -> str:
    return f"{mean:.3f}" if np.isnan(spread) else f"{mean:.3f} ± {spread:.3f}"
