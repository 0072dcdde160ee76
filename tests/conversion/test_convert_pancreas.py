"""The conversion of Pancreas-CT: DICOM series, labels that lie otherwise, the withdrawn cases, refusals."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from converting import (
    assert_citable,
    assert_nnunet_finds_no_fault,
    assert_volume,
    convert,
    facts,
    names,
    refusal,
    splits,
)
from mini_la import write_volume
from mini_pancreas import (
    NUMBERS,
    SHAPE,
    SPACING,
    affine,
    label_file,
    series_folder,
    voxels,
    write_label,
    write_pancreas,
    write_series,
)

CASES = [f"pancreas_{number:04d}" for number in NUMBERS if number != 25]


@pytest.fixture
def source(tmp_path) -> Path:
    return write_pancreas(tmp_path / "NIH")


@pytest.mark.parametrize("flip", ["none", "y", "z", "yz"])
def test_values_and_geometry_whichever_way_the_labels_lie(tmp_path, raw, capsys, flip):
    convert("pancreas", write_pancreas(tmp_path / "NIH", flip))
    said = capsys.readouterr().out
    assert f"Labels are flipped along: {flip}. Share of their voxels on soft tissue" in said
    assert "Leaving out case 0025, which was withdrawn" in said
    folder = raw / "Dataset027_PancreasCT"
    train, test = names(folder / "imagesTr"), names(folder / "imagesTs")
    assert sorted([*train, *test]) == CASES
    assert len(test) == 2
    for role, cases in (("Tr", train), ("Ts", test)):
        for name in cases:
            number = int(name[-4:])
            hu, label = voxels(number)
            assert_volume(folder / f"images{role}" / f"{name}_0000.nii.gz", hu.T, affine(number))
            assert_volume(folder / f"labels{role}" / f"{name}.nii.gz", label.T, affine(number))
    assert facts(folder)["label_flip"] == flip


def test_dataset_json_split_and_integrity(source, raw, monkeypatch, capsys):
    convert("pancreas", source, "--labeled", "3")
    folder = raw / "Dataset027_PancreasCT"
    about = facts(folder)
    assert about["labels"] == {"background": 0, "pancreas": 1}
    assert about["intensity_unit"] == "HU"
    assert about["license"] == "CC BY 3.0"
    assert "Drawn at random with a fixed seed" in about["split"]
    assert_citable(about)
    assert len(names(folder / "labelsTr")) == 3
    assert len(names(folder / "imagesUn")) == 4
    assert len(splits(folder)) == 3
    assert_nnunet_finds_no_fault(folder, monkeypatch, capsys)


@pytest.mark.slow
def test_sixty_two_of_the_eighty_cases_train(tmp_path, raw, monkeypatch):
    import mini_pancreas

    monkeypatch.setattr(mini_pancreas, "NUMBERS", range(1, 83))
    source = write_pancreas(tmp_path / "NIH")
    shutil.rmtree(source / "Pancreas-CT" / "PANCREAS_0070")
    convert("pancreas", source, "--labeled", "6")
    folder = raw / "Dataset027_PancreasCT"
    assert len(names(folder / "imagesTs")) == 18
    assert len(names(folder / "labelsTr")) == 6
    assert len(names(folder / "imagesUn")) == 56


def test_the_flip_can_be_set(source, raw, capsys):
    convert("pancreas", source, "--flip", "none")
    assert "Labels are flipped along" not in capsys.readouterr().out
    folder = raw / "Dataset027_PancreasCT"
    name = names(folder / "labelsTr")[0]
    number = int(name[-4:])
    assert_volume(folder / "labelsTr" / f"{name}.nii.gz", voxels(number)[1][:, ::-1].T, affine(number))


def test_an_orientation_that_is_not_clear_is_refused(tmp_path, raw):
    source = tmp_path / "NIH"
    for number in NUMBERS[:4]:
        write_series(series_folder(source, number), np.full(SHAPE, 40, np.int16), number)
        write_label(label_file(source, number), voxels(number)[1], "y")
    message = refusal(raw, "pancreas", source)
    assert "one orientation must clearly fit the soft tissue best (at least 60% of the label voxels" in message
    assert "none 100.0%, y 100.0%, z 100.0%, yz 100.0%" in message
    assert "set the axes with --flip" in message
    for number in NUMBERS[:4]:
        hu = np.full(SHAPE, -900, np.int16)
        hu[2, 3, 4] = 40
        write_series(series_folder(source, number), hu, number)
    assert "clearly fit the soft tissue best" in refusal(raw, "pancreas", source)


def test_faults(source, raw):
    image = series_folder(source, 21)
    shutil.rmtree(image)
    label_file(source, 22).unlink()
    hu, _ = voxels(23)
    shutil.rmtree(series_folder(source, 23))
    write_series(series_folder(source, 23), hu, 23, left_out=(3,))
    write_series(series_folder(source, 24).with_name("again"), voxels(24)[0], 24, series=2)
    write_volume(label_file(source, 26), voxels(26)[1][:-1].T.copy(), np.diag([*SPACING, 1.0]))
    write_volume(label_file(source, 27), (voxels(27)[1] * 2).T.copy(), np.diag([*SPACING, 1.0]))
    write_volume(label_file(source, 28), voxels(28)[1].T.copy(), np.diag([1.0, 1.0, 1.0, 1.0]))
    write_volume(label_file(source, 29), voxels(29)[1].T[..., None].repeat(2, axis=3), np.eye(4))
    broken = sorted(series_folder(source, 30).iterdir())[1]
    broken.write_bytes(broken.read_bytes()[:-100])
    shutil.rmtree(image.parents[1])
    message = refusal(raw, "pancreas", source)
    top = source / "Pancreas-CT"
    assert f"{label_file(source, 21)}: the image of this label is missing" in message
    assert f"{top / 'PANCREAS_0022'}: the label of this image is missing" in message
    assert f"{top / 'PANCREAS_0023'}: the distance of neighboring slices must be 1 mm; found 1 to 2 mm" in message
    assert f"{top / 'PANCREAS_0024'}: it must hold exactly one DICOM series; found 2" in message
    assert f"{label_file(source, 26)}: the size must be that of PANCREAS_0026" in message
    assert f"{label_file(source, 27)}: label values must be 0, 1; found 2" in message
    assert f"{label_file(source, 28)}: the spacing must be that of PANCREAS_0028" in message
    assert f"{label_file(source, 29)}: the image must have 3 axes; it has 4" in message
    assert (
        f"{top / 'PANCREAS_0030'}: every .dcm file must be a complete slice of the series; 1 are not, e.g. {broken}"
        in message
    )


def test_slices_of_two_sizes(source, raw):
    folder = series_folder(source, 21)
    one = voxels(21)[0][:1, :-2]
    (folder / "1-000.dcm").unlink()
    write_series(folder / "odd", one, 21)
    (folder / "odd" / "1-000.dcm").rename(folder / "1-000.dcm")
    assert f"{source / 'Pancreas-CT' / 'PANCREAS_0021'}: the DICOM series cannot be read (" in refusal(
        raw, "pancreas", source
    )


def test_wrong_folder(tmp_path, raw):
    (tmp_path / "empty").mkdir()
    assert "it must hold PANCREAS_0001 and so on, and label0001.nii.gz and so on; none was found" in refusal(
        raw, "pancreas", tmp_path / "empty"
    )
    (tmp_path / "empty" / "PANCREAS_0001").mkdir()
    write_label(tmp_path / "empty" / "label0001.nii.gz", voxels(1)[1], "y")
    assert "it must hold exactly one DICOM series; found 0" in refusal(raw, "pancreas", tmp_path / "empty")
