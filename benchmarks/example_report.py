"""The example report of the documentation, from real trainings on the phantom: `make example-report`.

Two methods with three seeds each learn from 3 labeled phantoms of a heart, one of them from 24 unlabeled ones as well,
and are validated on 12 others: results folders with curves, pseudo labels and costs, and nothing that is made up. The
trainings are far too short to say anything about the methods. The dataset is named after ACDC, whose images the
phantoms imitate, so that the report shows the published numbers, too.

python benchmarks/example_report.py              10 minutes on one core; writes docs/report_example.html and .png
python benchmarks/example_report.py --epochs 1   to try it
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

from nnunet_collab.demo.methods import _OPTIMIZER
from nnunet_collab.demo.workspace import environment

_get_context = multiprocessing.get_context
DOCS = Path(__file__).parents[1] / "docs"
DATASET, DATASET_ID = "Dataset027_ACDCPhantom", 27
LABELED, VALIDATION, UNLABELED = 3, 12, 24
SEEDS = (0, 1, 2)
_CNN = {"arch": {"features_per_stage": [8, 16, 32, 32, 32]}, **_OPTIMIZER}
_ONE = {"CNN": _CNN}
METHODS = {
    "SupervisedTrainer": {"students": _ONE},
    "MeanTeacherTrainer": {"students": _ONE, "consistency_weight": 2.0, "ema_decay": 0.95, "ramp_up": 0.3},
}


def main() -> None:
    """Make the data, train, report, and put the page and its picture into docs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, default=DOCS, help="folder of the page (default: docs)")
    parser.add_argument("--epochs", type=int, default=40, help="length of each training (default: %(default)s)")
    parser.add_argument("--iterations", type=int, default=20, help="iterations of an epoch (default: %(default)s)")
    parser.add_argument("--seeds", type=int, default=len(SEEDS), help="seeds of each method (default: %(default)s)")
    parser.add_argument("--keep", type=Path, help="keep all data and results in this new folder")
    args = parser.parse_args()
    began = time.time()
    with tempfile.TemporaryDirectory() as temporary:
        root = args.keep or Path(temporary)
        names = ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")
        paths = {name: root / name.removeprefix("nnUNet_") for name in names}
        os.environ.update(environment(paths))  # before nnU-Net is imported, which reads them then
        make_data(paths["nnUNet_raw"] / DATASET, paths["nnUNet_preprocessed"] / DATASET)
        os.environ.update(nnUNet_n_proc_DA="0")  # workers are not worth their start here
        length = {"epochs": args.epochs, "iterations_per_epoch": args.iterations, "val_iterations_per_epoch": 4}
        for seed in range(args.seeds):
            for trainer, settings in METHODS.items():
                print(f"[{time.time() - began:4.0f} s] {trainer}, seed {seed}", flush=True)
                train(trainer, {**length, "batch_size": 4, "run_name": f"s{seed}", "seed": seed, **settings})
        write_report(paths["nnUNet_results"] / DATASET, root / "report")
        shutil.copyfile(root / "report" / "report.html", args.output / "report_example.html")
    print(f"[{time.time() - began:4.0f} s] wrote {args.output / 'report_example.html'}")
    take_picture(args.output / "report_example.html", args.output / "report_example.png")


def make_data(raw: Path, preprocessed: Path) -> None:
    """Phantoms, their patients, nnU-Net's plans and a split with few labels."""
    from nnunetv2.experiment_planning.plan_and_preprocess_api import extract_fingerprints, plan_experiments, preprocess

    from nnunet_collab.cli import main as command
    from nnunet_collab.demo.phantom import write_dataset

    write_dataset(
        raw, n_train=LABELED + VALIDATION, n_test=0, n_unlabeled=UNLABELED, seed=0, shape=(6, 64, 64),
        spacing_mm=(10.0, 2.2, 2.2),
    )  # fmt: skip
    facts = json.loads((raw / "dataset.json").read_text())
    (raw / "dataset.json").write_text(json.dumps({**facts, "patient_pattern": r"(phantomTr\d+)"}))
    extract_fingerprints([DATASET_ID], num_processes=1, check_dataset_integrity=False)
    plan_experiments([DATASET_ID])
    preprocess([DATASET_ID], configurations=("2d",), num_processes=(1,))
    command(["preprocess_unlabeled", "-d", str(DATASET_ID), "-c", "2d", "-np", "1"])
    cases = sorted(path.name.removesuffix(".nii.gz") for path in (raw / "labelsTr").glob("*.nii.gz"))
    split = [{"train": cases[:LABELED], "val": cases[LABELED:]}]
    (preprocessed / "splits_final.json").write_text(json.dumps(split))


def train(trainer: str, settings: dict[str, object]) -> None:
    """One training with its validation, in this process: importing nnU-Net takes longer than a few epochs."""
    import torch
    from nnunetv2.run.run_training import run_training

    # nnU-Net starts new processes to write predictions, which import it again: longer than all they do here.
    multiprocessing.get_context = lambda method=None: _get_context("fork")  # type: ignore[assignment]
    torch.set_num_threads(1)
    os.environ.update(nnUNet_collab_settings=json.dumps({"validate_ensemble": False, **settings}))
    run_training(str(DATASET_ID), "2d", 0, trainer, device=torch.device("cpu"))


def write_report(results: Path, folder: Path) -> None:
    """The report of all results, with a surface Dice at one pixel."""
    from nnunet_collab.cli import main as command

    status = command(["report", str(results), "-o", str(folder), "--nsd_tolerance", "2.2", "-np", "1"])
    if status:
        raise SystemExit(status)


def take_picture(page: Path, picture: Path) -> None:
    """The first screens of the page, by a browser if there is one."""
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None:
        print(f"There is no Chromium, so {picture} stays as it is.")
        return
    with tempfile.TemporaryDirectory() as profile:
        flags = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--hide-scrollbars"]
        flags += [f"--user-data-dir={profile}", "--window-size=1280,2500", f"--screenshot={picture.resolve()}"]
        subprocess.run([browser, *flags, page.resolve().as_uri()], check=True, capture_output=True, timeout=180)
    print(f"wrote {picture}")


if __name__ == "__main__":
    main()
