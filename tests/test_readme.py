"""The commands of the README, letter by letter, on a miniature of the dataset that they name."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from documents import ROOT, code, commands, read, section

import nnunet_collab
from nnunet_collab.core.presets import settings_from_environment
from nnunet_collab.core.shipped import doorways
from nnunet_collab.demo.phantom import make_case
from nnunet_collab.methods.ctrcl import CTRCLSettings

README = read("README.md")
TINY = {
    "epochs": 1,
    "iterations_per_epoch": 2,
    "val_iterations_per_epoch": 1,
    "batch_size": 2,
    "validate_ensemble": False,
    "students": {"Transformer": {"network": "segformer_b0"}},
}


def block(title: str) -> list[str]:
    """The commands of the first block of a section."""
    return commands(code(section(README, title))[0])


def write_acdc(root: Path) -> None:
    """Phantoms in ACDC's official layout, large enough for nnU-Net to plan a real network."""
    rng = np.random.default_rng(0)
    for number in range(1, 7):
        patient = f"patient{number:03d}"
        folder = root / ("training" if number < 6 else "testing") / patient
        folder.mkdir(parents=True)
        (folder / "Info.cfg").write_text("ED: 1\nES: 8\nGroup: NOR\n")
        for frame in (1, 8):
            image, labels = make_case(rng, shape=(4, 64, 64), spacing_mm=(10.0, 1.5, 1.5))
            for array, ending in ((image, ""), (labels, "_gt")):
                volume = sitk.GetImageFromArray(array)
                volume.SetSpacing((1.5, 1.5, 10.0))
                sitk.WriteImage(volume, str(folder / f"{patient}_frame{frame:02d}{ending}.nii.gz"))


def write_more_images(folder: Path) -> None:
    """Two phantoms without labels, named like nnU-Net's images."""
    folder.mkdir()
    rng = np.random.default_rng(1)
    for number in range(2):
        image, _ = make_case(rng, shape=(4, 64, 64), spacing_mm=(10.0, 1.5, 1.5))
        volume = sitk.GetImageFromArray(image)
        volume.SetSpacing((1.5, 1.5, 10.0))
        sitk.WriteImage(volume, str(folder / f"more{number}_0000.nii.gz"))


@pytest.mark.slow
def test_the_users_day(tmp_path: Path) -> None:
    write_acdc(tmp_path / "ACDC")
    folders = {f"nnUNet_{name}": tmp_path / name for name in ("raw", "preprocessed", "results")}
    for folder in folders.values():
        folder.mkdir()
    images, labels = (tmp_path / "raw" / "Dataset027_ACDC" / name for name in ("imagesTs", "labelsTs"))
    environment = {
        **os.environ,
        **{name: str(folder) for name, folder in folders.items()},
        "nnUNet_extTrainer": "",
        "nnUNet_n_proc_DA": "1",
        "nnUNet_def_n_proc": "1",
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
        "OMP_NUM_THREADS": "1",
    }
    located = commands(code(section(read("docs/tutorial.md"), "5. If it did not help"))[0])
    unlabeled, simulated = block("I have unlabeled images"), block("I simulate few labels")
    day = [*block("Train"), *unlabeled, *located, *simulated]
    assert (len(block("Train")), len(unlabeled), len(located), len(simulated)) == (10, 6, 1, 4)
    more = tmp_path / "more"
    write_more_images(more)
    export = subprocess.run(
        [sys.executable, "-m", "nnunet_collab", "env"], env=environment, check=True, capture_output=True, text=True
    ).stdout
    here = "-d 27 -c 2d -device cpu --locate $nnUNet_results/Dataset027_ACDC/CrossTeachingTrainer_CNN__nnUNetPlans__2d"
    for command in day:
        line = command.replace("/data/ACDC", str(tmp_path / "ACDC")).replace("/data/more", str(more))
        line = re.sub(r"-i IN\b", f"-i {images}", line).replace("-l LABELS", f"-l {labels}")
        line = re.sub(r"-d 50 -c 2d --locate \S+", here, line)
        line = line.replace("nnunet_collab ", f"{sys.executable} -m nnunet_collab ", 1)
        if not torch.cuda.is_available() and line.startswith(("nnUNetv2_train", "nnUNetv2_predict")):
            line += " -device cpu"
        settings = {**TINY, "students": {}} if "CrossMatchTrainer" in line else TINY
        done = subprocess.run(
            ["bash", "-c", f"{export}\n{line}"],
            env={**environment, "nnUNet_collab_settings": json.dumps(settings)},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=900,
        )
        assert done.returncode == 0, f"{line}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    scores = (tmp_path / "scores.csv").read_text()
    assert "hd95_mm" in scores
    assert (tmp_path / "model.zip").is_file()
    results = folders["nnUNet_results"] / "Dataset027_ACDC"
    for trainer in ("CrossTeachingTrainer_CNN", "CrossTeachingTrainer_Transformer"):
        assert (results / f"{trainer}__nnUNetPlans__2d" / "fold_0" / "checkpoint_final.pth").is_file()
    (simulated_results,) = folders["nnUNet_results"].glob("Dataset028_*")
    assert (simulated_results / "CrossMatchTrainer_CNN__nnUNetPlans__2d" / "fold_0" / "checkpoint_final.pth").is_file()
    outcome = section(read("docs/start.md"), "What comes out of a training")
    named = re.findall(r"^\| `(CTRCLTrainer\S*)`", outcome, flags=re.MULTILINE)
    assert len(named) == 3
    for name in named:
        assert (results / name / "fold_0" / "checkpoint_final.pth").is_file()
    assert (results / named[-1] / "fold_0" / "collab_progress.png").is_file()


def test_settings_shown_are_valid(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = re.findall(r"export nnUNet_collab_settings=(.*)", read("docs/settings.md"))
    assert len(shown) == 3
    for value in shown:
        monkeypatch.setenv("nnUNet_collab_settings", value.strip("'"))
        assert settings_from_environment(CTRCLSettings()) != CTRCLSettings()
    monkeypatch.setenv("nnUNet_collab_settings", code(read("docs/own.md"), "json")[0])
    assert settings_from_environment(CTRCLSettings()).students[1].name == "SwinUNETR"


def test_the_trainer_of_ones_own_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

    mine, method = code(read("docs/own.md"), "python")
    (tmp_path / "MyCTRCLTrainer.py").write_text(mine)
    (tmp_path / "MyMethodTrainer.py").write_text(method)
    monkeypatch.setenv("nnUNet_extTrainer", str(tmp_path))
    assert recursive_find_trainer_class_by_name("MyCTRCLTrainer").settings.beta == 2.0
    own = recursive_find_trainer_class_by_name("MyMethodTrainer").settings
    assert (own.tau, own.epochs) == (0.9, 200)


def test_every_trainer_is_in_the_tables_of_methods() -> None:
    rows = re.findall(r"^\| .+ \| .+ \| `(\w+Trainer)` \| .+ \|$", section(README, "Methods"), flags=re.MULTILINE)
    assert sorted(rows) == sorted(doorways())


def test_every_paper_has_a_year_and_a_link() -> None:
    rows = [row for row in section(README, "Methods").splitlines() if "Trainer` |" in row]
    assert len(rows) == len(doorways())
    rows = [row for row in rows if "of the same paper" not in row]
    for row in rows:
        assert re.search(r", 20\d\d, \[(arXiv|doi):(\S+)\]\(https://(arxiv\.org/abs|doi\.org)/\2\)", row), row


def test_few_labels_are_simulated_in_another_dataset_and_never_where_labels_are_real() -> None:
    assert "split" not in " ".join(block("I have unlabeled images")).replace("split --audit", "")
    (split,) = (line for line in block("I simulate few labels") if " split " in line)
    assert "--to 28" in split
    assert "--overwrite" not in README


def test_the_version_is_in_the_changelog() -> None:
    changelog = read("CHANGELOG.md")
    assert "## [Unreleased]" in changelog or f"## [{nnunet_collab.__version__}]" in changelog
