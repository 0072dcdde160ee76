"""The conversion of ACDC, on a miniature in the official layout: voxels, geometry, split, refusals, interruption."""

from __future__ import annotations

import argparse
import json
import multiprocessing
import runpy
import shutil
from multiprocessing.pool import ThreadPool
from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
from mini_acdc import SHAPE, TEST, TRAIN, affine, write_acdc, write_image, write_patient
from public_lists import ACDC_TEST, ACDC_TRAIN, ACDC_VALIDATION

from nnunet_collab.commands import convert as convert_command
from nnunet_collab.conversion import raw_cases
from nnunet_collab.conversion.scripts import conversion_folder
from nnunet_collab.core.errors import CollabError


@pytest.fixture(scope="module")
def pristine(tmp_path_factory) -> Path:
    return write_acdc(tmp_path_factory.mktemp("official"))


@pytest.fixture
def source(pristine, tmp_path) -> Path:
    return shutil.copytree(pristine, tmp_path / "ACDC")


@pytest.fixture
def raw(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("nnUNet_raw", str(tmp_path / "raw"))
    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path / "preprocessed"))
    monkeypatch.delenv("nnUNet_results", raising=False)
    return tmp_path / "raw"


def convert(source: Path, *more: str) -> int:
    parser = argparse.ArgumentParser()
    convert_command.add_arguments(parser)
    return convert_command.run(parser.parse_args(["acdc", str(source), "-d", "27", *more]))


def refusal(source: Path, raw: Path) -> str:
    """The message of a conversion that must refuse, after making sure that nothing was written."""
    with pytest.raises(CollabError) as caught:
        convert(source)
    assert not raw.exists()
    assert not (raw.parent / "preprocessed").exists()
    return str(caught.value)


def test_voxels_and_geometry_are_those_of_the_source(source, raw):
    assert convert(source) == 0
    dataset = raw / "Dataset027_ACDC"
    entries = {"dataset.json", "imagesTr", "imagesTs", "labelsTr", "labelsTs", "splits_final.json"}
    assert {p.name for p in dataset.iterdir()} == entries
    for role, folder, patients in (("Tr", "training", TRAIN), ("Ts", "testing", TEST)):
        names = [f"{patient}_frame{frame}" for patient in patients for frame in ("01", "12")]
        assert sorted(p.name for p in (dataset / f"images{role}").iterdir()) == [f"{n}_0000.nii.gz" for n in names]
        assert sorted(p.name for p in (dataset / f"labels{role}").iterdir()) == [f"{n}.nii.gz" for n in names]
        for name in names:
            was = source / folder / name.split("_")[0] / f"{name}.nii.gz"
            image, label = (
                dataset / f"images{role}" / f"{name}_0000.nii.gz",
                dataset / f"labels{role}" / f"{name}.nii.gz",
            )
            assert image.read_bytes() == was.read_bytes()
            old, new = nib.load(was.with_name(f"{name}_gt.nii.gz")), nib.load(label)
            assert new.get_data_dtype() == np.uint8
            assert np.array_equal(np.asarray(old.dataobj), np.asarray(new.dataobj))
            assert np.allclose(new.affine, affine(name.split("_")[0]), atol=1e-4)


def test_nnunet_finds_no_fault(source, raw, monkeypatch, capsys):
    from nnunetv2.experiment_planning.verify_dataset_integrity import verify_dataset_integrity

    convert(source)
    # Threads instead of spawned processes: the same checks, without importing torch in each process.
    monkeypatch.setattr(multiprocessing, "get_context", lambda _: SimpleNamespace(Pool=ThreadPool))
    verify_dataset_integrity(str(raw / "Dataset027_ACDC"), 1)
    printed = capsys.readouterr().out
    assert "verify_dataset_integrity Done" in printed
    assert "Warning" not in printed


def test_dataset_json(source, raw):
    convert(source, "--name", "Heart")
    facts = json.loads((raw / "Dataset027_Heart" / "dataset.json").read_text())
    assert facts["labels"] == {"background": 0, "RV": 1, "MYO": 2, "LV": 3}
    assert facts["channel_names"] == {"0": "cineMRI"}
    assert facts["numTraining"] == 20
    assert facts["file_ending"] == ".nii.gz"
    assert facts["name"] == "Heart"
    assert "2514-2525" in facts["citation"]
    assert facts["license"] == "CC BY-NC-SA 4.0"
    assert facts["converted_by"].startswith("nnunet_collab ")
    assert facts["patient_pattern"] == r"(patient\d+)_frame\d+"


def test_split_is_by_patient_and_balanced_over_the_diagnoses(source, raw, capsys):
    convert(source)
    file = raw.parent / "preprocessed" / "Dataset027_ACDC" / "splits_final.json"
    split = json.loads(file.read_text())
    assert split == json.loads((raw / "Dataset027_ACDC" / "splits_final.json").read_text())
    assert str(file) in capsys.readouterr().out
    all_cases = {f"{patient}_frame{frame}" for patient in TRAIN for frame in ("01", "12")}
    assert len(split) == 5
    assert sorted(name for fold in split for name in fold["val"]) == sorted(all_cases)
    for fold in split:
        assert set(fold["train"]) | set(fold["val"]) == all_cases
        patients = {role: {name[:10] for name in fold[role]} for role in ("train", "val")}
        assert not patients["train"] & patients["val"]
        assert sorted(int(patient[-3:]) % 2 for patient in patients["val"]) == [0, 1]  # one of each diagnosis


def test_without_preprocessed_folder_the_last_lines_say_where_the_split_belongs(source, raw, monkeypatch, capsys):
    monkeypatch.delenv("nnUNet_preprocessed")
    convert(source)
    printed = capsys.readouterr().out
    assert f"{raw / 'Dataset027_ACDC' / 'splits_final.json'}. nnUNet_preprocessed is not set" in printed
    assert "$nnUNet_preprocessed/Dataset027_ACDC/splits_final.json" in printed


def test_official_archive_folder_and_missing_info_and_uncompressed_files_are_fine(source, raw):
    (source / "database").mkdir()
    for name in ("training", "testing"):
        (source / name).rename(source / "database" / name)
    folder = source / "database" / "training" / "patient004"
    (folder / "Info.cfg").unlink()
    for path in sorted(folder.glob("*frame*.nii.gz")):
        nib.save(nib.load(path), path.with_suffix(""))
        path.unlink()
    convert(source)
    was = nib.load(folder / "patient004_frame12.nii")
    now = nib.load(raw / "Dataset027_ACDC" / "imagesTr" / "patient004_frame12_0000.nii.gz")
    assert np.array_equal(np.asarray(was.dataobj), np.asarray(now.dataobj))
    assert now.get_data_dtype() == was.get_data_dtype()
    assert np.allclose(was.affine, now.affine, atol=1e-4)


@pytest.mark.parametrize("without", ["folder", "labels"])
def test_test_cases_may_be_missing_or_have_no_labels(source, raw, without):
    if without == "folder":
        shutil.rmtree(source / "testing")
    else:
        for label in source.glob("testing/*/*_gt.nii.gz"):
            label.unlink()
    convert(source)
    dataset = raw / "Dataset027_ACDC"
    assert len(list((dataset / "imagesTr").iterdir())) == 20
    assert not (dataset / "labelsTs").exists()
    assert (dataset / "imagesTs").exists() == (without == "labels")


def test_missing_folders(source, raw, tmp_path):
    assert f"{tmp_path / 'nowhere'}: SOURCE must be the folder of the dataset; it does not exist" in refusal(
        tmp_path / "nowhere", raw
    )
    assert "it is a file" in refusal(source / "MANDATORY_CITATION.md", raw)
    assert "SOURCE must hold the folder training" in refusal(source / "training", raw)
    for patient in TRAIN:
        shutil.rmtree(source / "training" / patient)
    assert "it must hold one folder per patient, patient001 and so on; none was found" in refusal(source, raw)


def test_all_faults_are_told_at_once(source, raw):
    train, test = source / "training", source / "testing"
    (train / "patient001/patient001_frame01_gt.nii.gz").unlink()
    (train / "patient002/patient002_frame12.nii.gz").unlink()
    (test / "patient101/patient101_frame12_gt.nii.gz").unlink()
    broken = train / "patient003/patient003_frame01.nii.gz"
    broken.write_bytes(broken.read_bytes()[:-40])
    (test / "patient102/patient102_frame01.nii.gz").write_bytes(b"")
    grid = affine("patient004")
    write_image(train / "patient004/patient004_frame01_gt.nii.gz", np.zeros((9, 7, 4), np.uint8), grid)
    grid[:3, 3] += 2
    write_image(train / "patient004/patient004_frame12_gt.nii.gz", np.zeros(SHAPE, np.uint8), grid)
    write_image(train / "patient005/patient005_frame01_gt.nii.gz", np.full(SHAPE, 4, np.uint8), affine("patient005"))
    write_image(train / "patient005/patient005_frame12.nii.gz", np.ones((*SHAPE, 2), np.int16), affine("patient005"))
    shutil.rmtree(train / "patient006")
    (train / "patient006").mkdir()
    shutil.copy(train / "patient007/patient007_frame01.nii.gz", train / "patient007/patient070_frame01.nii.gz")
    nib.save(nib.load(train / "patient008/patient008_frame01.nii.gz"), train / "patient008/patient008_frame01.nii")
    shutil.copytree(train / "patient009", test / "patient009")

    message = refusal(source, raw)
    for path, fault in {
        "training/patient001/patient001_frame01.nii.gz": "the label of this image is missing. Copy patient001",
        "training/patient002/patient002_frame12_gt.nii.gz": "the image of this label is missing. Copy patient002",
        "testing/patient101/patient101_frame12.nii.gz": "the label of this image is missing",
        "training/patient003/patient003_frame01.nii.gz": "cannot be read completely",
        "testing/patient102/patient102_frame01.nii.gz": "cannot be read completely",
        "training/patient004/patient004_frame01_gt.nii.gz": "the size must be that of patient004_frame01.nii.gz",
        "training/patient004/patient004_frame12_gt.nii.gz": "the origin must be that of patient004_frame12.nii.gz",
        "training/patient005/patient005_frame01_gt.nii.gz": "label values must be 0, 1, 2, 3; found 4",
        "training/patient005/patient005_frame12.nii.gz": "the image must have 3 axes; it has 4",
        "training/patient006": "there is no image patient006_frameNN.nii.gz.",
        "training/patient007/patient070_frame01.nii.gz": "the file must be of patient007",
        "training/patient008/patient008_frame01.nii.gz": "there must be one file per frame; found also patient008",
    }.items():
        assert f"{source / path}: {fault}" in message
    assert f"patient patient009: a patient must be either in training or in testing; found in {train}" in message
    assert message.startswith("convert: the source has 13 faults, so nothing was written:\n- ")
    assert len(message.splitlines()) == 14


def test_one_patient_is_too_few_and_three_give_three_folds(source, raw, capsys):
    for patient in TRAIN[3:]:
        shutil.rmtree(source / "training" / patient)
    convert(source)
    assert len(json.loads((raw / "Dataset027_ACDC" / "splits_final.json").read_text())) == 3
    assert "Train folds 0 to 2 only" in capsys.readouterr().out
    for place in (raw, raw.parent / "preprocessed"):
        shutil.rmtree(place)
    for patient in TRAIN[1:3]:
        shutil.rmtree(source / "training" / patient)
    message = refusal(source, raw)
    assert "the source has one fault" in message
    assert "training and validation need labeled cases of at least 2 patients" in message
    assert "found 1 (patient001)" in message


def test_interruption_leaves_no_dataset_and_the_next_run_goes_on(source, raw, monkeypatch, capsys):
    written, stop_after = [], 7
    real = raw_cases.shutil.copyfile

    def stopping_copy(old, new):
        if len(written) == stop_after:
            raise KeyboardInterrupt
        written.append(new)
        return real(old, new)

    with monkeypatch.context() as patch:
        patch.setattr(raw_cases.shutil, "copyfile", stopping_copy)
        with pytest.raises(KeyboardInterrupt):
            convert(source)
    partial = raw / ".Dataset027_ACDC.partial"
    assert [path.name for path in raw.iterdir()] == [partial.name]
    assert not (raw.parent / "preprocessed").exists()
    (partial / "imagesTr" / "leftover.nii.gz").touch()
    capsys.readouterr()
    convert(source)
    said = capsys.readouterr().out
    assert f"Continuing {partial}, left by an interrupted conversion: 7 cases complete, 17 remain" in said
    assert [path.name for path in raw.iterdir()] == ["Dataset027_ACDC"]
    assert len(list((raw / "Dataset027_ACDC" / "imagesTr").iterdir())) == 20


def test_few_labels(source, raw):
    convert(source, "--labeled", "3")
    dataset = raw / "Dataset027_ACDC"
    labeled = sorted(path.name for path in (dataset / "labelsTr").iterdir())
    unlabeled = sorted(path.name for path in (dataset / "imagesUn").iterdir())
    assert (len(labeled), len(unlabeled)) == (6, 14)
    assert {name[:10] for name in labeled} | {name[:10] for name in unlabeled} == set(TRAIN)
    assert not (dataset / "labelsUn").exists()
    assert len(list((dataset / "labelsTs").iterdir())) == 4
    record = json.loads((dataset / "dataset.json").read_text())["labeled_protocol"]
    assert (record["protocol"], record["seed"]) == ("3", 0)


def test_split_of_the_semi_supervised_papers(tmp_path, raw):
    for number in range(1, 101):
        write_patient(tmp_path / "whole" / "training", f"patient{number:03d}", frames=(1,))
    convert(tmp_path / "whole", "--split", "ssl4mis", "--labeled", "7")
    dataset = raw / "Dataset027_ACDC"
    patients = {
        folder: {int(path.name[7:10]) for path in (dataset / folder).iterdir()}
        for folder in ("imagesTr", "imagesUn", "imagesTs", "labelsTr", "labelsTs")
    }
    train, validation, test = ([int(number) for number in of] for of in (ACDC_TRAIN, ACDC_VALIDATION, ACDC_TEST))
    assert patients["imagesTr"] == patients["labelsTr"] == {*train[:7], *validation}
    assert patients["imagesUn"] == {*train[7:]}
    assert patients["imagesTs"] == patients["labelsTs"] == {*test}
    script = runpy.run_path(str(conversion_folder() / "acdc.py"))
    assert list(script["SSL4MIS_FIRST"]) == train[:26]  # in their order, which says who is labeled
    assert list(script["SSL4MIS_VALIDATION"]) == validation
    assert list(script["SSL4MIS_TEST"]) == test
    (fold,) = json.loads((dataset / "splits_final.json").read_text())
    assert {int(name[7:10]) for name in fold["val"]} == {*validation}
    facts = json.loads((dataset / "dataset.json").read_text())
    assert facts["labeled_protocol"]["chosen"] == "the first 7 of the public list of SSL4MIS"
    assert facts["split"].startswith("The 70, 10 and 20 patients of the public lists")


def test_split_of_the_papers_needs_all_patients(source, raw):
    with pytest.raises(CollabError, match=r"--split ssl4mis needs all 100 patients; 90 are missing, e\.g\. patient011"):
        convert(source, "--split", "ssl4mis")
    assert not raw.exists()
