"""Nothing of a person goes along; numbers are kept by the key table; patients come from a table, a pattern or DICOM."""

from __future__ import annotations

import gzip
import json
import shutil
import zlib
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import SimpleITK as sitk
from converting import facts, names, splits
from mini_dicom import voxels, write_segmentation, write_series
from own_source import AFFINE, image, label, nnunet, own, refused, write_volume, write_volumes  # noqa: F401
from PIL import Image, PngImagePlugin

from nnunet_collab.conversion import raw_cases
from nnunet_collab.core.patients import read_patients

pytestmark = pytest.mark.usefixtures("nnunet")
SECRETS = (b"secret", b"anna", b"19500102", b"1.2.826.0.1")  # in names, tags, comments and UIDs that the tests write


def everything(*folders: Path) -> dict[str, bytes]:
    """All paths and bytes below folders, packed and unpacked."""
    found = {}
    for path in (path for folder in folders for path in folder.rglob("*")):
        found[f"{path}, its path"] = str(path.relative_to(path.anchor)).encode()
        if path.is_file():
            found[str(path)] = path.read_bytes()
            if path.suffix == ".gz":
                found[f"{path}, unpacked"] = gzip.decompress(path.read_bytes())
    return found


def secrets_in(*folders: Path) -> list[str]:
    places = everything(*folders)
    return [
        f"{word.decode()} in {where}"
        for where, content in places.items()
        for word in SECRETS
        if word in content.lower()
    ]


def write_secrets(source: Path) -> None:
    """DICOM, NIfTI with a description and an extension, and NRRD and MetaImage with comments, all with names."""
    for i in range(2):
        files = write_series(source / "images" / f"Secretname_Anna{i}", voxels(i), patient=i, study=i)
        labels = (voxels(i) > 1000).astype(np.uint8)
        write_segmentation(source / "labels" / f"Secretname_Anna{i}.dcm", files, labels, {1: "liver"})
    noted = nib.Nifti1Image(voxels(5).transpose(2, 1, 0), np.diag([0.5, 0.75, 2, 1]))
    noted.header["descrip"] = b"Secretname Anna"
    noted.header["db_name"] = b"secret"
    noted.header["aux_file"] = b"secret"
    noted.header["intent_name"] = b"secret"
    noted.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"Secretname Anna"))
    (source / "unlabeled").mkdir(parents=True)
    nib.save(noted, source / "unlabeled" / "Secretname.nii.gz")
    for ending in (".nrrd", ".mha"):
        with_comment = sitk.GetImageFromArray(voxels(6))
        for word in ("Comment", "ITK_FileNotes", "PatientName"):
            with_comment.SetMetaData(word, "Secretname Anna")
        sitk.WriteImage(with_comment, str(source / "unlabeled" / f"Anna{ending}"), useCompression=False)
        assert b"Secretname" in (source / "unlabeled" / f"Anna{ending}").read_bytes()
        (source / "unlabeled" / f"Anna{ending}").rename(source / "unlabeled" / f"Anna_of{ending[1:]}{ending}")


def test_no_name_and_no_tag_goes_along(tmp_path, nnunet, capsys):  # noqa: F811
    write_secrets(tmp_path / "source")
    own(tmp_path / "source", "--key", str(tmp_path / "key.csv"))
    assert secrets_in(tmp_path / "source")  # they are seen where they are
    assert secrets_in(nnunet, nnunet.with_name("nnUNet_preprocessed")) == []
    assert read_patients(nnunet / "Dataset027_Own" / "patients.csv") == {
        f"case_000{i}": f"patient_000{i}" for i in range(1, 6)
    }
    assert "secretid" not in capsys.readouterr().out.lower()
    assert (tmp_path / "key.csv").stat().st_mode & 0o077 == 0  # for its owner alone
    key = pd.read_csv(tmp_path / "key.csv", keep_default_na=False)
    assert key.loc[key["source"] == "train/Secretname_Anna1", ["case", "source_patient"]].to_numpy().tolist() == [
        ["case_0002", "SECRETID1"]
    ]


def test_an_interrupted_conversion_holds_no_name_either_and_is_continued(tmp_path, nnunet, monkeypatch, capsys):  # noqa: F811
    write_secrets(tmp_path / "source")
    write = raw_cases.write_image
    count = []

    def interrupted(picture, path):
        if len(count) == 5:
            raise KeyboardInterrupt
        count.append(path)
        write(picture, path)

    monkeypatch.setattr(raw_cases, "write_image", interrupted)
    with pytest.raises(KeyboardInterrupt):
        own(tmp_path / "source")
    partial = nnunet / ".Dataset027_Own.partial"
    assert (partial / "manifest.jsonl").is_file()
    assert secrets_in(nnunet) == []
    capsys.readouterr()
    count.clear()
    monkeypatch.setattr(raw_cases, "write_image", lambda picture, path: (count.append(path), write(picture, path)))
    folder = own(tmp_path / "source")
    assert "Continuing" in capsys.readouterr().out
    assert [path.name for path in count] == [f"case_000{i}_0000.nii.gz" for i in (4, 5)]
    assert names(folder / "imagesUn") == ["case_0003", "case_0004", "case_0005"]
    assert not partial.exists()


def test_pictures_lose_their_comments(tmp_path, nnunet):  # noqa: F811
    for folder in ("images", "labels"):
        (tmp_path / "source" / folder).mkdir(parents=True)
    for i in range(2):
        notes = PngImagePlugin.PngInfo()
        notes.add_text("Comment", "Secretname Anna")
        notes.add_text("Patient", "Secretname Anna", zip=True)
        pixels = np.random.default_rng(i).integers(0, 255, (9, 8)).astype(np.uint8)
        Image.fromarray(pixels).save(tmp_path / "source" / "images" / f"Anna{i}.png", pnginfo=notes)
        exif = Image.Exif()
        exif[0x9286] = "Secretname Anna"
        mask = Image.fromarray((pixels > 99).astype(np.uint8))
        mask.save(tmp_path / "source" / "labels" / f"Anna{i}.png", exif=exif, pnginfo=notes)
    own(tmp_path / "source")
    assert secrets_in(nnunet) == []
    for path in nnunet.rglob("*.png"):  # only what a picture needs, nothing that could hold a packed text
        assert chunks(path) <= {b"IHDR", b"IDAT", b"IEND", b"pHYs", b"sCAL"}


def chunks(path: Path) -> set[bytes]:
    """Types of a PNG's chunks; their checksums are right."""
    raw, place, found = path.read_bytes(), 8, set()
    while place < len(raw):
        length = int.from_bytes(raw[place : place + 4], "big")
        kind, end = raw[place + 4 : place + 8], place + 8 + length
        assert zlib.crc32(raw[place + 4 : end]) == int.from_bytes(raw[end : end + 4], "big")
        found.add(kind)
        place = end + 4
    return found


# ---------------------------------------------------------------- numbers and names


def test_a_key_table_keeps_its_numbers_also_when_a_scan_is_labeled(tmp_path):
    source, key = tmp_path / "source", tmp_path / "key.csv"
    write_volumes(source, seeds=range(1, 4))
    write_volumes(source, "unlabeled", None, seeds=range(5, 7))
    own(source, "--key", str(key))
    first = pd.read_csv(key, keep_default_na=False).set_index("source")["case"].to_dict()
    assert first == {
        **{f"train/anna{i}": f"case_000{i}" for i in (1, 2, 3)},
        "unlabeled/anna5": "case_0004",
        "unlabeled/anna6": "case_0005",
    }
    write_volumes(source, seeds=range(1))  # anna0 comes before all others
    (source / "unlabeled" / "anna6.nii.gz").rename(source / "images" / "anna6.nii.gz")  # and anna6 is labeled now
    write_volume(source / "labels" / "anna6.nii.gz", label(6))
    (source / "images" / "anna2.nii.gz").unlink()
    (source / "labels" / "anna2.nii.gz").unlink()
    folder = own(source, "--key", str(key), "--overwrite")
    assert names(folder / "imagesTr") == ["case_0001", "case_0003", "case_0005", "case_0006"]
    table = pd.read_csv(key, keep_default_na=False)
    assert table.set_index("source")["case"].to_dict() == {
        "train/anna0": "case_0006", "train/anna1": "case_0001", "train/anna2": "case_0002", "train/anna3": "case_0003",
        "train/anna6": "case_0005", "unlabeled/anna5": "case_0004",
    }  # fmt: skip


def test_the_key_table_stays_out_of_nnunets_folders_and_replaces_no_other_file(tmp_path, nnunet):  # noqa: F811
    write_volumes(tmp_path / "source", seeds=range(2))
    text = refused(tmp_path / "source", "--key", str(nnunet / "key.csv"))
    assert "--key: the key table tells whose scan is which, so it must not lie in nnUNet_raw" in text
    (tmp_path / "thesis.csv").write_text("chapter\n1\n")
    assert "must be a key table of an earlier conversion; it is not" in refused(
        tmp_path / "source", "--key", str(tmp_path / "thesis.csv")
    )
    assert (tmp_path / "thesis.csv").read_text() == "chapter\n1\n"
    assert "it must be a file in an existing folder" in refused(
        tmp_path / "source", "--key", str(tmp_path / "no" / "k")
    )


def test_names_are_kept_if_the_user_says_so(tmp_path):
    write_volumes(tmp_path, seeds=range(2))
    write_volume(tmp_path / "unlabeled" / "of day 3" / "scan.nii.gz", image(7))
    folder = own(tmp_path, "--keep_names")
    assert names(folder / "imagesTr") == ["anna0", "anna1"]
    assert names(folder / "imagesUn") == ["of_day_3_scan"]
    assert facts(folder)["patient_pattern"] == "(.+)"
    shutil.copy(tmp_path / "images" / "anna0.nii.gz", tmp_path / "unlabeled" / "anna0.nii.gz")
    with pytest.raises(
        Exception, match="with --keep_names every name must occur once; found in train/anna0, unlabeled/anna0"
    ):
        own(tmp_path, "--keep_names", "--overwrite")


# ---------------------------------------------------------------- patients


def write_visits(source):
    for person in ("ada", "bob", "cyd"):
        for visit in (1, 2):
            seed = 10 * len(person) + visit + ord(person[0])
            write_volume(source / "images" / f"{person}_{visit}.nii.gz", image(seed))
            write_volume(source / "labels" / f"{person}_{visit}.nii.gz", label(seed))
    write_volume(source / "unlabeled" / "ada_3.nii.gz", image(3))
    return source


def assert_three_patients(folder):
    table = read_patients(folder / "patients.csv")
    assert [table[f"case_000{i}"] for i in range(1, 8)] == [f"patient_000{i}" for i in (1, 1, 2, 2, 3, 3, 1)]
    assert facts(folder)["patients"] == "Dataset027_Own/patients.csv"
    assert "patient_pattern" not in facts(folder)
    preprocessed = folder.parents[1] / "nnUNet_preprocessed" / folder.name
    assert read_patients(preprocessed / "patients.csv") == table
    for fold in splits(folder):
        assert not {table[case] for case in fold["train"]} & {table[case] for case in fold["val"]}


def test_patients_by_a_pattern_or_a_table(tmp_path):
    source = write_visits(tmp_path / "source")
    assert_three_patients(own(source, "--patient_pattern", r"(\w+)_\d"))
    rows = [
        f"{path.name[:5]},{path.name[:3]}" for folder in ("images", "unlabeled") for path in (source / folder).iterdir()
    ]
    (tmp_path / "who.csv").write_text("\n".join(["case,patient", *rows]))
    assert_three_patients(own(source, "--patients", str(tmp_path / "who.csv"), "--overwrite"))


def test_a_pattern_that_tells_by_the_kept_names_needs_no_table(tmp_path):
    folder = own(write_visits(tmp_path / "source"), "--patient_pattern", r"(\w+)_\d", "--keep_names")
    assert facts(folder)["patient_pattern"] == r"(\w+)_\d"
    assert not (folder / "patients.csv").exists()
    assert len(splits(folder)) == 3


def test_dicom_of_one_person_is_of_one_patient(tmp_path):
    for i in range(3):
        files = write_series(tmp_path / "source" / "images" / f"c{i}", voxels(i), patient=i // 2, study=i)
        labels = (voxels(i) > 1000).astype(np.uint8)
        write_segmentation(tmp_path / "source" / "labels" / f"c{i}.dcm", files, labels, {1: "liver"})
    folder = own(tmp_path / "source")
    assert read_patients(folder / "patients.csv") == {
        "case_0001": "patient_0001", "case_0002": "patient_0001", "case_0003": "patient_0002"
    }  # fmt: skip


TABLES = {
    "unknown": ("zoe_1,zoe", "it must name cases of the source; there is no case zoe_1."),
    "another-patient": ("ada_1,bob", "line 9 gives ada_1 another patient than a line above"),
    "no-patient": ("x,", "line 9 must name a case and a patient"),
}


@pytest.mark.parametrize("fault", TABLES)
def test_a_table_of_patients_with_a_fault_is_refused(fault, tmp_path):
    source = write_visits(tmp_path / "source")
    rows = [
        f"{path.name[:5]},{path.name[:3]}"
        for folder in ("images", "unlabeled")
        for path in sorted((source / folder).iterdir())
    ]
    (tmp_path / "who.csv").write_text("\n".join(["case,patient", *rows, TABLES[fault][0]]))
    assert TABLES[fault][1] in refused(source, "--patients", str(tmp_path / "who.csv"))
    (tmp_path / "who.csv").write_text("\n".join(["case,patient", *rows[2:]]))
    assert "it has no line for ada_1, ada_2." in refused(source, "--patients", str(tmp_path / "who.csv"))
    assert "it and --patient_pattern exclude each other" in refused(
        source, "--patients", str(tmp_path / "who.csv"), "--patient_pattern", "(.)"
    )


@pytest.mark.parametrize("role", ["images", "unlabeled"])
def test_a_patient_in_two_roles_is_refused(role, tmp_path):
    source = write_visits(tmp_path / "source")
    person = "bob" if role == "images" else "dan"
    write_volume(source / "test_images" / f"{person}_9.nii.gz", image(1))
    if role == "unlabeled":
        write_volume(source / "unlabeled" / "dan_1.nii.gz", image(2))
    text = refused(source, "--patient_pattern", r"(\w+)_\d")
    assert f"{person}_9.nii.gz: a test patient must have no other role; " in text
    assert f"{role}/{person}_1.nii.gz is of the same patient" in text


def test_few_labels_and_patients_of_a_table_go_together(tmp_path):
    folder = own(write_visits(tmp_path / "source"), "--patient_pattern", r"(\w+)_\d", "--labeled", "2")
    table = read_patients(folder / "patients.csv")
    assert len(names(folder / "imagesTr")) == 4
    assert len(names(folder / "imagesUn")) == 3
    assert set(table) == {*names(folder / "imagesTr"), *names(folder / "imagesUn")}
    labeled = {table[case] for case in names(folder / "imagesTr")}
    assert sorted(json.loads((folder / "dataset.json").read_text())["labeled_protocol"]["labeled_patients"]) == sorted(
        labeled
    )


def test_the_affine_of_the_tests_is_not_along_the_axes():
    assert np.count_nonzero(AFFINE[:3, :3]) == 3
    assert AFFINE[0, 0] == 0
