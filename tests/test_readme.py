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

import nnunet_collab
from nnunet_collab.core.presets import preset_names, settings_from_environment
from nnunet_collab.demo.phantom import make_case
from nnunet_collab.methods.ctrcl import CTRCLSettings

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
TINY = {
    "epochs": 1,
    "iterations_per_epoch": 2,
    "val_iterations_per_epoch": 1,
    "batch_size": 2,
    "validate_ensemble": False,
    "students": {"Transformer": {"network": "segformer_b0"}},
}


def section(title: str) -> str:
    return README.split(f"## {title}\n")[1].split("\n## ")[0]


def code(title: str, language: str = "") -> list[str]:
    return re.findall(rf"^ *```{language}\n(.*?)^ *```", section(title), flags=re.DOTALL | re.MULTILINE)


def commands(title: str) -> list[str]:
    """Lines of the section's first block of commands, without their comments."""
    lines = [line.split("  #")[0].strip() for line in code(title)[0].splitlines()]
    return [line for line in lines if line]


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
    few = commands("Few labels, many images")
    day = [*commands("Workflow"), *few]
    assert len(day) >= 8 + 6
    more = tmp_path / "more"
    write_more_images(more)
    export = subprocess.run(
        [sys.executable, "-m", "nnunet_collab", "env"], env=environment, check=True, capture_output=True, text=True
    ).stdout
    for command in day:
        line = command.replace("/data/ACDC", str(tmp_path / "ACDC")).replace("/data/more", str(more))
        line = re.sub(r"-i IN\b", f"-i {images}", line).replace("-l LABELS", f"-l {labels}")
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
    results = folders["nnUNet_results"] / "Dataset027_ACDC"
    for trainer in ("CrossTeachingTrainer_CNN", "CrossTeachingTrainer_Transformer", "CrossMatchTrainer_CNN"):
        assert (results / f"{trainer}__nnUNetPlans__2d" / "fold_0" / "checkpoint_final.pth").is_file()
    named = re.findall(r"^\| `(CTRCLTrainer\S*)`", section("Workflow"), flags=re.MULTILINE)
    assert len(named) == 3
    for name in named:
        assert (results / name / "fold_0" / "checkpoint_final.pth").is_file()
    assert (results / named[-1] / "fold_0" / "collab_progress.png").is_file()


def test_settings_shown_are_valid(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = re.findall(r"export nnUNet_collab_settings=(.*)", section("Settings"))
    assert len(shown) == 3
    for value in shown:
        monkeypatch.setenv("nnUNet_collab_settings", value.strip("'"))
        assert settings_from_environment(CTRCLSettings()) != CTRCLSettings()
    monkeypatch.setenv("nnUNet_collab_settings", code("Settings", "json")[0])
    assert settings_from_environment(CTRCLSettings()).students[1].name == "SwinUNETR"


def test_the_trainer_of_ones_own_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

    (source,) = code("Settings", "python")
    (tmp_path / "MyCTRCLTrainer.py").write_text("\n".join(line.removeprefix("  ") for line in source.splitlines()))
    monkeypatch.setenv("nnUNet_extTrainer", str(tmp_path))
    assert recursive_find_trainer_class_by_name("MyCTRCLTrainer").settings.beta == 2.0


def test_every_preset_and_file_named_exists() -> None:
    for name in preset_names():
        assert f"`{name}`" in README
    for target in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (ROOT / target).exists(), target


def test_the_version_is_in_the_changelog() -> None:
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert "## [Unreleased]" in changelog or f"## [{nnunet_collab.__version__}]" in changelog
