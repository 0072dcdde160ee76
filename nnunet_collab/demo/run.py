"""The main job in minutes: a phantom dataset through nnU-Net's own commands, to a table and two figures."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nnunet_collab.core.errors import CollabError
from nnunet_collab.core.shipped import doorway_folder
from nnunet_collab.demo.phantom import write_dataset
from nnunet_collab.evaluation.folders import evaluate_folders
from nnunet_collab.evaluation.metrics import summarise
from nnunet_collab.figures import OverlayRow, largest_slice, learning_curves_figure, overlay_figure

if TYPE_CHECKING:
    import pandas as pd

DATASET_ID = 1
DATASET = "Dataset001_Phantom"
PLANS, CONFIGURATION, TRAINER = "nnUNetPlans", "2d", "CTRCLTrainer"
MARKER = ".nnunet_collab_demo"  # a folder with this file may be replaced

# Small networks, one optimiser for both and a short run: the same code as a real training, in minutes on two CPU cores.
_OPTIMIZER = {
    "optimizer": "adamw",
    "lr": 2e-3,
    "weight_decay": 0.01,
    "warmup": 0.05,
    "lr_per": "iteration",
    "grad_clip": 1.0,
}
SETTINGS: dict[str, Any] = {
    "epochs": 18,
    "iterations_per_epoch": 25,
    "val_iterations_per_epoch": 5,
    "batch_size": 8,
    "validate_ensemble": False,
    "students": {
        "CNN": {"arch": {"features_per_stage": [16, 32, 64, 64, 64]}, **_OPTIMIZER},
        "Transformer": {"network": "segformer_b0", **_OPTIMIZER},
    },
}


def run_demo(
    folder: Path,
    *,
    device: str,
    overwrite: bool,
    training_cases: int = 20,
    test_cases: int = 6,
    settings: Mapping[str, Any] = SETTINGS,
) -> None:
    """Make data, plan, train, predict, ensemble, evaluate, draw.

    Args:
        folder: Where everything goes.
        device: `auto`, or what nnU-Net's `-device` takes.
        overwrite: Replace the folder of an earlier demo.
        training_cases: How many phantoms to plan, train and validate on.
        test_cases: How many to hold out.
        settings: Of the trainer.

    Raises:
        CollabError: If the folder must not be replaced, or one of nnU-Net's commands fails.
    """
    began = time.time()
    device = _device(device)
    folder = folder.resolve()
    _make_room(folder, overwrite)
    paths = {
        name: folder / name.removeprefix("nnUNet_") for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")
    }
    run = _Commands(folder / "logs", _environment(paths, settings), began)
    raw = paths["nnUNet_raw"] / DATASET

    run.step(f"making {training_cases} training and {test_cases} test cases of a cardiac phantom")
    write_dataset(raw, n_train=training_cases, n_test=test_cases, seed=0)
    run.step("planning and preprocessing")
    run(
        "plan",
        "nnUNetv2_plan_and_preprocess",
        "-d",
        DATASET_ID,
        "-c",
        CONFIGURATION,
        "-np",
        2,
        "-npfp",
        2,
        "--verify_dataset_integrity",
    )
    run.step(f"training a CNN and a Transformer together on {device}")
    run("train", "nnUNetv2_train", DATASET_ID, CONFIGURATION, 0, "-tr", TRAINER, "-device", device, echo=_epoch_line)
    predictions = {}
    for name, trainer in (("CNN", f"{TRAINER}_CNN"), ("Transformer", f"{TRAINER}_Transformer"), ("both", TRAINER)):
        run.step(f"predicting the test cases with {name}")
        predictions[name] = folder / "predictions" / name
        run(
            f"predict_{name}", "nnUNetv2_predict", "-d", DATASET_ID, "-c", CONFIGURATION, "-f", 0, "-tr", trainer,
            "-i", raw / "imagesTs", "-o", predictions[name], "-device", device, "-npp", 1, "-nps", 1,
            *(["--save_probabilities"] if name != "both" else []),
        )  # fmt: skip
    run.step("averaging their predictions with nnUNetv2_ensemble")
    predictions["ensemble"] = folder / "predictions" / "ensemble"
    inputs = (predictions["CNN"], predictions["Transformer"])
    run("ensemble", "nnUNetv2_ensemble", "-i", *inputs, "-o", predictions["ensemble"], "-np", 1)
    run.step("evaluating")
    frames = {
        name: evaluate_folders(path, raw / "labelsTs", dataset_json=raw / "dataset.json", processes=1, progress=False)
        for name, path in predictions.items()
    }
    # The two ways to combine the students look alike; the figure shows one.
    drawn = {name: path for name, path in predictions.items() if name != "both"}
    _draw(folder, raw, drawn, frames, paths["nnUNet_results"])
    _print_table(frames, test_cases)
    minutes = (time.time() - began) / 60
    print(f"\nFigures: {folder / 'overlays.png'}\n         {folder / 'learning_curves.png'}")
    print(f"Models:  {paths['nnUNet_results'] / DATASET}\nDone in {minutes:.1f} minutes.")


def _device(asked: str) -> str:
    if asked != "auto":
        return asked
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def _make_room(folder: Path, overwrite: bool) -> None:
    if folder.exists() and any(folder.iterdir()):
        if not (folder / MARKER).exists():
            raise CollabError(
                f"{folder}: must be empty or an earlier demo's; it holds other files. Name another folder."
            )
        if not overwrite:
            raise CollabError(f"{folder}: holds an earlier demo. Name another folder, or replace it with --overwrite.")
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MARKER).touch()


def _environment(paths: Mapping[str, Path], settings: Mapping[str, Any]) -> dict[str, str]:
    """nnU-Net's commands need its paths, the doorways and the settings; the user's own variables are left alone."""
    for path in paths.values():
        path.mkdir(parents=True, exist_ok=True)
    own = {name: str(path) for name, path in paths.items()}
    return {
        **os.environ,
        **own,
        "nnUNet_extTrainer": str(doorway_folder()),
        "nnUNet_collab_settings": json.dumps(settings),
        # Few processes: on a small machine, starting them costs more than they save.
        "nnUNet_n_proc_DA": "1",
        "nnUNet_def_n_proc": "1",
        "nnUNet_compile": "f",
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
    }


class _Commands:
    """Runs commands with their output in log files, and tells what is going on."""

    def __init__(self, logs: Path, environment: dict[str, str], began: float) -> None:
        self.logs = logs
        self.environment = environment
        self.began = began
        logs.mkdir(parents=True, exist_ok=True)

    def step(self, what: str) -> None:
        print(f"[{time.time() - self.began:4.0f} s] {what}", flush=True)

    def __call__(self, name: str, *command: object, echo: Callable[[str], str | None] | None = None) -> None:
        log = self.logs / f"{name}.log"
        words = [str(word) for word in command]
        print(f"         $ {' '.join(words)}", flush=True)
        with open(log, "w", encoding="utf-8") as file:
            process = subprocess.Popen(
                words, env=self.environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
            )
            assert process.stdout is not None  # it is a pipe
            for line in process.stdout:
                file.write(line)
                shown = echo(line) if echo else None
                if shown:
                    print(f"         {shown}", flush=True)
        if process.wait() != 0:
            tail = "".join(log.read_text(encoding="utf-8").splitlines(keepends=True)[-15:])
            raise CollabError(f"{words[0]}: failed with status {process.returncode}; the end of {log}:\n{tail}")


def _epoch_line(line: str) -> str | None:
    """What the training's log says of an epoch, in one line."""
    return line.partition(": ")[2].strip() if "pseudo Dice: " in line else None


def _draw(
    folder: Path, raw: Path, predictions: Mapping[str, Path], frames: Mapping[str, pd.DataFrame], results: Path
) -> None:
    cases = sorted(path.name.removesuffix(".nii.gz") for path in (raw / "labelsTs").glob("*.nii.gz"))
    overlay_figure([_row(case, raw, predictions, frames) for case in cases[:3]], folder / "overlays.png")
    curves = json.loads(
        (results / DATASET / f"{TRAINER}__{PLANS}__{CONFIGURATION}" / "fold_0" / "curves.json").read_text()
    )
    learning_curves_figure(curves, folder / "learning_curves.png")


def _row(case: str, raw: Path, predictions: Mapping[str, Path], frames: Mapping[str, pd.DataFrame]) -> OverlayRow:
    import SimpleITK as sitk

    image = sitk.ReadImage(str(raw / "imagesTs" / f"{case}_0000.nii.gz"))
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
    )


def _array(path: Path) -> Any:
    import SimpleITK as sitk

    return sitk.GetArrayFromImage(sitk.ReadImage(str(path)))


def _print_table(frames: Mapping[str, pd.DataFrame], cases: int) -> None:
    """Dice per class, mean and standard deviation over the test cases."""
    titles = {
        "CNN": "CNN student",
        "Transformer": "Transformer student",
        "both": "both, one pass",
        "ensemble": "nnUNetv2_ensemble",
    }
    summaries = {name: summarise(frame) for name, frame in frames.items()}
    classes = list(dict.fromkeys(next(iter(summaries.values()))["class"]))
    print(f"\nDice on {cases} cases held out from training, mean ± standard deviation over the cases\n")
    print(f"{'':22}" + "".join(f"{name:>16}" for name in classes))
    for name, summary in summaries.items():
        values = summary.set_index(["class", "statistic"])["dice"]
        cells = [_cell(values.get((c, "mean"), np.nan), values.get((c, "std"), np.nan)) for c in classes]
        print(f"{titles[name]:22}" + "".join(f"{cell:>16}" for cell in cells))


def _cell(mean: float, spread: float) -> str:
    return f"{mean:.3f}" if np.isnan(spread) else f"{mean:.3f} ± {spread:.3f}"
