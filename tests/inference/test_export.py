"""A published student becomes nnU-Net's zip with a model card; what nnU-Net would stumble over is refused before."""

from __future__ import annotations

import json
import shutil
import zipfile
from pathlib import Path

import pytest
from tiny import finish_run, make_trainer

from nnunet_collab.cli import main
from nnunet_collab.core import checkpoint as checkpoints
from nnunet_collab.inference.model_card import model_card
from nnunet_collab.inference.model_folder import find_model
from nnunet_collab.inference.publish import publish_fold
from nnunet_collab.methods.ctrcl import CTRCLTrainer

INSIDE = "Dataset001_Tiny/CTRCLTrainer_CNN__nnUNetPlans__2d"
SUMMARY = {
    "foreground_mean": {"Dice": 0.75},
    "mean": {"1": {"Dice": 0.7}, "2": {"Dice": 0.8}},
    "metric_per_case": [
        {
            "metrics": {"1": {"Dice": 0.7}},
            "prediction_file": "/data/Jane_Doe.nii.gz",
            "reference_file": "/x/Jane_Doe.nii.gz",
        }
    ],
}


@pytest.fixture
def published(fold):
    """Folder of the published CNN."""
    (fold / "progress.png").write_bytes(b"png")
    return publish_fold(fold)[0].parent


def validate(model, summary=SUMMARY):
    (model / "fold_0" / "validation").mkdir()
    (model / "fold_0" / "validation" / "summary.json").write_text(json.dumps(summary))


def export(*words):
    return main(["export", *map(str, words)])


def refusal(capsys, *words):
    assert export(*words) == 2
    return capsys.readouterr().err


def test_the_zip_is_nnunets_own_with_a_card(published, tmp_path, monkeypatch):
    validate(published)
    assert export(published, "-o", tmp_path / "model.zip", "--license", "CC BY 4.0") == 0
    with zipfile.ZipFile(tmp_path / "model.zip") as archive:
        assert sorted(archive.namelist()) == [
            f"{INSIDE}/{name}"
            for name in (
                "MODEL_CARD.md", "dataset.json", "dataset_fingerprint.json", "fold_0/checkpoint_final.pth",
                "fold_0/progress.png", "fold_0/validation/summary.json", "plans.json",
            )
        ]  # fmt: skip
        weights = archive.read(f"{INSIDE}/fold_0/checkpoint_final.pth")
        card = archive.read(f"{INSIDE}/MODEL_CARD.md").decode()
        everything = b"".join(map(archive.read, archive.namelist()))
    assert weights == (published / "fold_0" / "checkpoint_final.pth").read_bytes()
    assert "| fold_0 | 1 | 0.700 | 0.800 | 0.750 |" in card
    assert "| fold | cases | ring | core | mean |" in card
    assert "CC BY 4.0" in card
    assert "| ring | 1 |" in card
    assert "nnU-Net v2 alone is enough" in card
    assert "nnUNetv2_predict -d 1 -c 2d -p nnUNetPlans -tr CTRCLTrainer_CNN -f 0 -i IMAGES -o OUT" in card
    assert "The training started from random weights" in card
    assert b"Jane" not in everything
    assert str(tmp_path) not in card

    # nnU-Net's own command unpacks it into its results folder.
    from nnunetv2.model_sharing.model_import import install_model_from_zip_file

    monkeypatch.setenv("nnUNet_results", str(tmp_path / "elsewhere"))
    install_model_from_zip_file(str(tmp_path / "model.zip"))
    assert (tmp_path / "elsewhere" / INSIDE / "fold_0" / "checkpoint_final.pth").read_bytes() == weights
    assert not list(tmp_path.glob(".*partial"))


def test_two_folds_go_along_with_their_common_postprocessing(published, tmp_path, capsys):
    validate(published)
    shutil.copytree(published / "fold_0", published / "fold_1")
    shutil.rmtree(published / "fold_1" / "validation")
    together = published / "crossval_results_folds_0_1"
    together.mkdir()
    for name in ("postprocessing.pkl", "postprocessing.json", "postprocessed"):
        (together / name).write_text("{}")
    (together / "summary.json").write_text(json.dumps(SUMMARY))
    capsys.readouterr()
    assert export(published, "-o", tmp_path / "model.zip") == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ["reads", "wrote"]
    with zipfile.ZipFile(tmp_path / "model.zip") as archive:
        names = {name.removeprefix(f"{INSIDE}/") for name in archive.namelist()}
        beside = {Path(name).name for name in names if name.startswith("crossval_results_folds_0_1/")}
        assert beside == {"postprocessing.pkl", "postprocessing.json", "summary.json"}
        assert b"Jane" not in archive.read(f"{INSIDE}/crossval_results_folds_0_1/summary.json")
        card = archive.read(f"{INSIDE}/MODEL_CARD.md").decode()
    assert {"fold_0/checkpoint_final.pth", "fold_1/checkpoint_final.pth"} <= names
    assert "-f 0 1 " in card
    assert "Not validated: fold_1." in card
    assert export(published, "-o", tmp_path / "one.zip", "-f", "1") == 0
    with zipfile.ZipFile(tmp_path / "one.zip") as archive:
        assert not [name for name in archive.namelist() if "crossval" in name or "fold_0" in name]


def test_without_a_validation_the_card_says_so(published, tmp_path):
    assert export(published, "-o", tmp_path / "model.zip") == 0
    with zipfile.ZipFile(tmp_path / "model.zip") as archive:
        assert json.loads(archive.read(f"{INSIDE}/fold_0/validation/summary.json")) == {
            "note": "This fold was not validated."
        }
        card = archive.read(f"{INSIDE}/MODEL_CARD.md").decode()
    assert "holds no validation" in card
    assert "has not stated one" in card


def test_a_transformer_needs_this_package_and_pretrained_weights_keep_their_license(fold, published):
    model = find_model(fold.parent, "Transformer", None)
    content = checkpoints.load(model.folder / "fold_0" / "checkpoint_final.pth")
    content["nnunet_collab"]["weights_from"]["Transformer"] = "ImageNet; license: non-commercial"
    card = model_card(model, {"fold_0": content}, "", "m.zip")
    assert "must be installed" in card
    assert "nnU-Net v2 alone is enough" not in card
    assert "ImageNet; license: non-commercial. The license of those weights applies, too." in card


def test_a_training_of_several_students_asks_which(fold, published, tmp_path, capsys):
    told = refusal(capsys, fold.parent, "-o", tmp_path / "m.zip")
    assert "published students, CNN, Transformer; none was given" in told
    assert "it is Resnet" in refusal(capsys, fold.parent, "-o", tmp_path / "m.zip", "--student", "Resnet")
    assert export(fold.parent, "-o", tmp_path / "m.zip", "--student", "CNN") == 0


def test_one_student_need_not_be_named(tmp_path, monkeypatch):
    trainer = make_trainer(CTRCLTrainer, tmp_path, monkeypatch, changes={"publish": ["CNN"]})
    fold = finish_run(trainer)
    (fold / "progress.png").write_bytes(b"png")
    publish_fold(fold)
    model = find_model(fold.parent, None, None)
    assert (model.trainer, model.folds) == ("CTRCLTrainer_CNN", ("fold_0",))


def test_every_missing_file_is_named_at_once(published, tmp_path, capsys):
    (published / "dataset_fingerprint.json").unlink()
    (published / "fold_0" / "progress.png").unlink()
    told = refusal(capsys, published, "-o", tmp_path / "m.zip", "-f", "0", "3")
    for name in (
        "dataset_fingerprint.json",
        "fold_0/progress.png",
        "fold_3/checkpoint_final.pth",
        "fold_3/progress.png",
    ):
        assert name in told
    assert "finished folds are fold_0" in told
    assert not (tmp_path / "m.zip").exists()


def test_every_wrong_argument_is_named_at_once(published, tmp_path, capsys):
    told = refusal(capsys, published, "-o", tmp_path / "no" / "m.tar", "--case", tmp_path / "x.nii.gz")
    for part in ("must end with .zip", "the folder of -o must exist", "--onnx, which is not given", "there is no file"):
        assert part in told


@pytest.mark.parametrize("name", ["nothing", "Dataset001_Tiny", "Dataset001_Tiny/A__B__C"])
def test_other_folders_are_refused(name, tmp_path, capsys):
    (tmp_path / "Dataset001_Tiny").mkdir()
    assert "RUN must be <Trainer>__<plans>__<configuration>" in refusal(
        capsys, tmp_path / name, "-o", tmp_path / "m.zip"
    )


def test_files_are_not_replaced_unless_asked(published, tmp_path, capsys):
    (tmp_path / "m.zip").write_text("precious")
    assert "--overwrite" in refusal(capsys, published, "-o", tmp_path / "m.zip")
    assert (tmp_path / "m.zip").read_text() == "precious"
    assert export(published, "-o", tmp_path / "m.zip", "--overwrite") == 0
    assert zipfile.is_zipfile(tmp_path / "m.zip")


def test_onnx_without_the_extra_is_refused(published, tmp_path, capsys, monkeypatch):
    from nnunet_collab.inference import onnx_network

    monkeypatch.setattr(onnx_network.importlib.util, "find_spec", lambda name: None if name == "onnxscript" else name)
    told = refusal(capsys, published, "-o", tmp_path / "m.zip", "--onnx")
    assert "not installed: onnxscript. Write: pip install onnxscript" in told
    assert list(tmp_path.glob("m*")) == []


def test_regions_are_named_in_the_card(tmp_path, monkeypatch):
    trainer = make_trainer(CTRCLTrainer, tmp_path, monkeypatch, kind="regions")
    fold = finish_run(trainer)
    (fold / "progress.png").write_bytes(b"png")
    model = publish_fold(fold)[0].parent
    validate(model, {**SUMMARY, "mean": {"(1, 2)": {"Dice": 0.7}, "(2,)": {"Dice": 0.8}}})
    card = model_card(
        find_model(model, None, None), {"fold_0": checkpoints.load(model / "fold_0/checkpoint_final.pth")}, "", "m.zip"
    )
    assert "| fold | cases | whole | core | mean |" in card
    assert "| whole | 1, 2 |" in card
