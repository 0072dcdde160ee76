"""What `split` writes and where, what it leaves alone, and what it refuses."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from unlabeled_images import contents, save_image

from nnunet_collab.cli import main
from nnunet_collab.conversion import labeled_subset
from nnunet_collab.core.files import write_json
from nnunet_collab.splits import split_files
from nnunet_collab.splits.patient_folds import patient_folds

NAME = "Dataset027_Tiny"
PATIENTS = [f"p{number}" for number in range(6)]
CASES = [f"{patient}_{frame}" for patient in PATIENTS for frame in "ab"]
DATASET_JSON = {
    "name": "Tiny",
    "channel_names": {"0": "T1", "1": "T2"},
    "labels": {"background": 0, "x": 1},
    "numTraining": len(CASES),
    "file_ending": ".nii.gz",
    "patient_pattern": r"(p\d)_\w",
}


def patient(case):
    return case.split("_")[0]


FOLDS = patient_folds(CASES, patient, folds=3)


def save_case(raw, part, case, seed, label=False):
    rng = np.random.default_rng([seed, *part.encode()])
    for channel in range(2):
        save_image(raw / f"images{part}" / f"{case}_{channel:04d}.nii.gz", rng.random((2, 3, 4), np.float32))
    if label:
        save_image(raw / f"labels{part}" / f"{case}.nii.gz", rng.integers(0, 2, (2, 3, 4), np.uint8))


@pytest.fixture
def raw(tmp_path, monkeypatch) -> Path:
    for variable in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        monkeypatch.setenv(variable, str(tmp_path / variable))
        (tmp_path / variable).mkdir()
    raw = tmp_path / "nnUNet_raw" / NAME
    for seed, case in enumerate(CASES):
        save_case(raw, "Tr", case, seed, label=True)
    save_case(raw, "Un", "u_a", 0)
    save_case(raw, "Ts", "t_a", 0, label=True)
    write_json(raw / "dataset.json", DATASET_JSON)
    return raw


@pytest.fixture
def preprocessed(raw) -> Path:
    folder = raw.parents[1] / "nnUNet_preprocessed" / NAME
    folder.mkdir()
    return folder


def command(*words):
    return main(["split", "-d", "27", *words])


def read(folder):
    return json.loads((folder / "splits_final.json").read_text())


def refusal(capsys, raw, *words):
    """The message of a refusal, after which the disk is as it was."""
    before = contents(raw.parents[1])
    assert command(*words) == 2
    assert contents(raw.parents[1]) == before
    return capsys.readouterr().err


# ---------------------------------------------------------------- splits


def test_an_unplanned_dataset_gets_its_split_where_the_planner_takes_it_from(raw, capsys):
    assert command("--labeled", "2", "--folds", "3") == 0
    split = read(raw)
    assert [fold["val"] for fold in split] == [fold["val"] for fold in FOLDS]
    for fold in split:
        assert len({patient(case) for case in fold["train"]}) == 2
        assert sorted(case for role in fold.values() for case in role) == CASES
    assert not (raw.parents[1] / "nnUNet_preprocessed" / NAME).exists()
    out = capsys.readouterr().out
    assert "3 folds are made by patient, because there is no split to start from." in out
    assert f"wrote   {raw / 'splits_final.json'}" in out
    assert out.splitlines()[-5:] == [
        "patients/cases",
        "        fold     labeled   unlabeled  validation",
        "           0         2/4         2/4         2/4",
        "           1         2/4         2/4         2/4",
        "           2         2/4         2/4         2/4",
    ]


def test_default_is_five_folds(raw):
    command("--labeled", "1")
    assert read(raw) != []
    assert len(read(raw)) == 5


def test_a_planned_dataset_gets_it_where_training_reads_it_alone(raw, preprocessed):
    assert command("--labeled", "50%") == 0
    assert len(read(preprocessed)) == 5
    assert not (raw / "splits_final.json").exists()


def test_both_copies_are_replaced_only_on_demand_and_kept(raw, preprocessed, capsys):
    write_json(raw / "splits_final.json", FOLDS)
    write_json(preprocessed / "splits_final.json", FOLDS)
    message = refusal(capsys, raw, "--labeled", "2")
    assert f"{preprocessed / 'splits_final.json'}: there is another split already. To replace it, add" in message
    assert "splits_final.before_split.json. Trainings with the old split cannot be" in message
    assert command("--labeled", "2", "--overwrite") == 0
    first = read(raw)
    assert first == read(preprocessed)
    assert [sorted(fold["train"] + fold["unlabeled"]) for fold in first] == [fold["train"] for fold in FOLDS]
    for folder in (raw, preprocessed):
        assert json.loads((folder / "splits_final.before_split.json").read_text()) == FOLDS
    before = contents(raw.parents[1])
    assert command("--labeled", "2") == 0  # the same split is no hindrance
    assert contents(raw.parents[1]) == before
    assert command("--labeled", "3", "--overwrite") == 0
    for folder in (raw, preprocessed):
        assert json.loads((folder / "splits_final.before_split.json").read_text()) == FOLDS
        assert json.loads((folder / "splits_final.before_split.2.json").read_text()) == first
        assert all(set(a["train"]) < set(b["train"]) for a, b in zip(first, read(folder), strict=True))


def test_the_split_that_training_reads_is_where_it_starts_from(raw, preprocessed):
    write_json(raw / "splits_final.json", FOLDS)
    write_json(preprocessed / "splits_final.json", FOLDS[::-1])
    command("--labeled", "1", "--overwrite")
    assert [fold["val"] for fold in read(raw)] == [fold["val"] for fold in FOLDS[::-1]]
    (preprocessed / "splits_final.json").unlink()
    write_json(raw / "splits_final.json", FOLDS)
    command("--labeled", "1", "--overwrite")
    assert [fold["val"] for fold in read(preprocessed)] == [fold["val"] for fold in FOLDS]


def test_named_patients(raw, capsys):
    assert command("--labeled", "p1", "p4_b", "p4_a", "--folds", "4") == 0
    assert all(fold["train"] == ["p1_a", "p1_b", "p4_a", "p4_b"] for fold in read(raw))
    assert sorted(case for fold in read(raw) for case in fold["val"]) == [c for c in CASES if c[:2] not in ("p1", "p4")]
    assert "named patients are labeled in every fold. The other patients" in capsys.readouterr().out


def test_cases_the_old_split_left_out_are_named(raw, capsys):
    write_json(raw / "splits_final.json", [{"train": CASES[:6], "val": CASES[6:10]}])
    assert command("--labeled", "1", "--overwrite") == 0
    assert "because the existing split leaves them out: p5_a, p5_b." in capsys.readouterr().out


def test_patterns(raw, capsys):
    assert command("--labeled", "1") == 0
    assert "patient of its own" not in capsys.readouterr().out
    write_json(raw / "dataset.json", {k: v for k, v in DATASET_JSON.items() if k != "patient_pattern"})
    message = refusal(capsys, raw, "--labeled", "3")  # its folds are by patient, so fewer cases are labeled now
    assert "there is another split" in message
    (raw / "splits_final.json").unlink()
    assert command("--labeled", "3") == 0
    assert "Every case is treated as a separate patient, because dataset.json has no" in capsys.readouterr().out
    assert {len(fold["train"]) for fold in read(raw)} == {3}
    assert command("--labeled", "3", "--patient-pattern", r"(\w)\d_\w") == 2
    assert "splits_final.json, fold 0: a patient must have one role; patient p is in" in capsys.readouterr().err


@pytest.mark.parametrize("how", ["name", "plans"])
def test_ct_statistics_know_the_hidden_labels(raw, preprocessed, capsys, how):
    command("--labeled", "1")
    assert "Warning" not in capsys.readouterr().out
    if how == "name":
        write_json(raw / "dataset.json", DATASET_JSON | {"channel_names": {"0": "CT"}})
    else:
        entry = {"normalization_schemes": ["ZScoreNormalization", "CTNormalization"]}
        write_json(preprocessed / "nnUNetPlans.json", {"configurations": {"2d": entry}})
    command("--labeled", "1")
    assert "Warning: the images are normalized as CT, with intensities under all labels" in capsys.readouterr().out


def test_patients_with_further_images_in_imagesun_are_named(raw, capsys):
    save_case(raw, "Un", "p3_c", 9)
    save_case(raw, "Un", "p9_c", 9)
    command("--labeled", "1")
    out = capsys.readouterr().out
    assert "imagesUn also holds images of patients of imagesTr: p3_c. A training leaves out the images" in out


# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "split: needs --labeled, --audit, or both; got neither. Add e.g. --labeled 7."),
        (("--audit", "--to", "28"), "--to: it needs --labeled"),
        (("--labeled", "1", "--name", "X"), "--name: it names the new dataset that --to writes, so it needs --to"),
        (("--labeled", "1", "--folds", "1"), "--folds: must be at least 2; got 1"),
        (("--labeled", "0"), "the number of patients must be at least 1; got 0"),
        (("--labeled", "101%"), "at most 100; got 101%"),
        (("--labeled", "6"), "fold 0 has 4 training patients; got 6. Use at most 4"),
        (("--labeled", "p7"), "there is no p7"),
        (("--labeled", "p1_a"), "p1 also has p1_b"),
        (("--labeled", "1", "--patient-pattern", "(p"), "which is not a regular expression"),
        (("--labeled", "1", "--patient-pattern", "p.*"), "which has no group"),
        (("--labeled", "1", "--patient-pattern", "(p[01])_."), "which finds no patient in p2_a"),
        (
            ("--labeled", "1", "--folds", "4"),
            "must be 3, the number of folds of the existing split; got 4.",
        ),
        (("--labeled", "9", "--to", "28"), "the dataset has 6 patients; got 9"),
        (("--labeled", "1", "--validation", "p1"), "--validation: it gives patients of a new dataset a role, so"),
        (("--labeled", "1", "--test", "p1"), "--test: it gives patients of a new dataset a role, so"),
        (("--labeled", "1", "--validation", "p1", "--to", "28", "--folds", "3"), "with --validation there is one fold"),
        (("--labeled", "1", "--validation", "p8", "--to", "28"), "--validation: names must be patients or cases"),
        (("--labeled", "1", "--test", "p1_a", "--to", "28"), "--test: all cases of a patient must be named, or none;"),
        (("--labeled", "p1", "--validation", "p1", "--to", "28"), "p1_a is in labeled and in validation"),
        (("--labeled", "1", "--validation", "p1", "--test", "p2", "p1", "--to", "28"), "is in validation and in test"),
        (("--labeled", "5", "--validation", "p1", "--test", "p2", "--to", "28"), "the dataset has 4 patients; got 5"),
    ],
)
def test_arguments_that_are_refused(raw, capsys, words, message):
    write_json(raw / "splits_final.json", FOLDS)
    assert message in refusal(capsys, raw, *words)


@pytest.mark.parametrize(
    ("split", "message"),
    [
        ("no json", "it must be JSON; it is not ("),
        ("{}", "it must be a list of at least one fold"),
        ([{"train": ["zz"], "val": ["p0_a"]}], "it must name cases of the dataset; there is no zz"),
        ([{"train": CASES, "val": []}], "fold 0: val must name at least one case to validate on; it is empty"),
        ([{"train": [], "val": CASES}], "fold 0: train must name at least one case to train with; it is empty"),
        ([{"train": ["p0_a"], "val": ["p0_b"]}], "a patient must have one role; patient p0 is in train and in val"),
        ([{"train": ["p1_a"], "unlabeled": ["p0_a"], "val": ["p0_b"]}], "patient p0 is in unlabeled and in val"),
    ],
)
def test_a_split_that_is_refused(raw, capsys, split, message):
    (raw / "splits_final.json").write_text(split if isinstance(split, str) else json.dumps(split))
    found = refusal(capsys, raw, "--labeled", "1")
    assert message in found
    assert str(raw) in found
    assert "Or make new folds with --overwrite" in found
    assert message in refusal(capsys, raw, "--audit")
    before = (raw / "splits_final.json").read_bytes()
    assert command("--labeled", "1", "--folds", "3", "--overwrite") == 0
    assert message in capsys.readouterr().out
    assert [fold["val"] for fold in read(raw)] == [fold["val"] for fold in FOLDS]
    assert (raw / "splits_final.before_split.json").read_bytes() == before


def test_an_image_that_the_audit_cannot_read_stops_everything(raw, capsys):
    (raw / "imagesTr" / "p0_a_0000.nii.gz").write_bytes(b"no image")
    for words in (("--labeled", "1"), ("--labeled", "3", "--to", "28")):
        assert "every image must be readable" in refusal(capsys, raw, *words, "--audit")


def test_a_split_without_unlabeled_cases_is_remarked_on(raw, capsys):
    assert command("--labeled", "100%") == 0
    assert "No case is unlabeled: all training patients keep their labels." in capsys.readouterr().out


def test_datasets_that_are_refused(raw, capsys, monkeypatch):
    shutil.rmtree(raw / "imagesTr")
    assert f"{raw / 'imagesTr'}: it must hold cases named CASE_0000.nii.gz; it holds none" in refusal(
        capsys, raw, "--audit"
    )
    (raw / "dataset.json").unlink()
    assert f"{raw / 'dataset.json'}: the file must exist; it does not. Correct -d" in refusal(capsys, raw, "--audit")
    monkeypatch.delenv("nnUNet_raw")
    assert "nnUNet_raw: nnU-Net's variables must be set" in refusal(capsys, raw, "--audit")


# ---------------------------------------------------------------- --to


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def files(cases):
    return sorted(f"{case}_{channel:04d}.nii.gz" for case in cases for channel in range(2))


def test_a_dataset_without_the_other_labels(raw, capsys):
    before = contents(raw)
    assert command("--labeled", "3", "--to", "28") == 0
    new = raw.with_name("Dataset028_TinyLabeled3")
    labeled = [path.name[:-7] for path in sorted((new / "labelsTr").iterdir())]
    others = [case for case in CASES if case not in labeled]
    assert len(labeled) == 6
    assert names(new / "imagesTr") == files(labeled)
    assert names(new / "imagesUn") == files([*others, "u_a"])
    assert names(new / "imagesTs") == files(["t_a"])
    assert names(new / "labelsTs") == ["t_a.nii.gz"]
    content = json.loads((new / "dataset.json").read_text())
    changed = {"name": "TinyLabeled3", "numTraining": 6, "labeled_subset_of": NAME}
    assert content == {**DATASET_JSON, **changed}
    everything = {path.split("/")[-1]: data for path, data in before.items()}
    for path in new.rglob("*.nii.gz"):
        assert path.read_bytes() == everything[path.name]
    split = read(new)
    assert len(split) == 3
    assert all(sorted(fold["train"] + fold["val"]) == labeled for fold in split)
    assert all(not {patient(c) for c in fold["train"]} & {patient(c) for c in fold["val"]} for fold in split)
    assert json.loads((raw.parents[1] / "nnUNet_preprocessed" / new.name / "splits_final.json").read_text()) == split
    assert contents(raw) == before
    assert (new / "imagesTr" / files(labeled)[0]).samefile(raw / "imagesTr" / files(labeled)[0])  # a hard link
    out = capsys.readouterr().out
    assert f"wrote   {new}: labeled 6 cases of 3 patients (" in out
    assert "of the other 6 training cases are in imagesUn, without labels" in out
    assert "nnUNetv2_plan_and_preprocess -d 28" in out


def test_validation_and_test_patients_keep_labels_and_no_other_role(raw, capsys):
    words = ("--labeled", "2", "--validation", "p0", "p3", "--test", "p5", "--to", "28", "--name", "Roles")
    assert command(*words) == 0
    new = raw.with_name("Dataset028_Roles")
    (fold,) = read(new)
    validation, test = ["p0_a", "p0_b", "p3_a", "p3_b"], ["p5_a", "p5_b"]
    assert fold["val"] == validation
    assert len(fold["train"]) == 4
    assert not {patient(case) for case in fold["train"]} & {"p0", "p3", "p5"}
    assert names(new / "imagesTr") == files([*fold["train"], *validation])
    assert names(new / "labelsTr") == [f"{case}.nii.gz" for case in sorted([*fold["train"], *validation])]
    assert names(new / "imagesTs") == files([*test, "t_a"])
    assert names(new / "labelsTs") == [f"{case}.nii.gz" for case in [*test, "t_a"]]
    rest = [case for case in CASES if case not in {*fold["train"], *validation, *test}]
    assert names(new / "imagesUn") == files([*rest, "u_a"])
    assert json.loads((new / "dataset.json").read_text())["numTraining"] == 8
    out = capsys.readouterr().out
    assert "validation 4 cases of 2 patients (p0, p3);" in out
    assert "test 2 cases of 1 patients (p5);" in out
    assert "the other 2 training cases are in imagesUn" in out
    planned = raw.parents[1] / "nnUNet_preprocessed" / new.name / "splits_final.json"
    assert json.loads(planned.read_text()) == [fold]


def test_one_labeled_patient_with_validation_patients_has_a_fold(raw):
    assert command("--labeled", "p2", "--validation", "p4", "--to", "28", "--name", "One") == 0
    (fold,) = read(raw.with_name("Dataset028_One"))
    assert fold == {"train": ["p2_a", "p2_b"], "val": ["p4_a", "p4_b"]}


def test_one_labeled_patient_has_no_split(raw, capsys):
    stale = raw.parents[1] / "nnUNet_preprocessed" / "Dataset028_One" / "splits_final.json"
    stale.parent.mkdir()
    stale.write_text("[]")
    message = refusal(capsys, raw, "--labeled", "p2", "--to", "28", "--name", "One")
    assert f"{stale}: with one labeled patient there must not be a split" in message
    stale.unlink()
    assert command("--labeled", "p2", "--to", "28", "--name", "One") == 0
    assert names(raw.with_name("Dataset028_One")) == [
        "dataset.json",
        "imagesTr",
        "imagesTs",
        "imagesUn",
        "labelsTr",
        "labelsTs",
    ]
    assert "so no split is written. Train fold `all`" in capsys.readouterr().out


def test_without_hard_links_files_are_copied(raw, monkeypatch):
    def none(source, place):
        raise OSError("no links here")

    monkeypatch.setattr(labeled_subset.os, "link", none)
    assert command("--labeled", "3", "--to", "28") == 0
    new = raw.with_name("Dataset028_TinyLabeled3")
    assert not (new / "imagesTs" / "t_a_0000.nii.gz").samefile(raw / "imagesTs" / "t_a_0000.nii.gz")
    assert contents(new / "imagesTs") == contents(raw / "imagesTs")


def test_a_symbolic_link_and_tiff_s_spacing_come_along(raw):
    image = raw / "imagesTr" / "p0_a_0000.nii.gz"
    image.rename(raw / "elsewhere")
    image.symlink_to(Path("..") / "elsewhere")
    (raw / "imagesTr" / "p0_a.json").write_text("{}")
    (raw / "labelsTr" / "p0_a.json").write_text("[]")
    assert command("--labeled", "p0", "p1", "--to", "28") == 0
    new = raw.with_name("Dataset028_TinyLabeled2")
    assert (new / "imagesTr" / image.name).read_bytes() == image.read_bytes()
    assert (new / "imagesTr" / "p0_a.json").read_text() == "{}"
    assert (new / "labelsTr" / "p0_a.json").read_text() == "[]"


def test_files_that_dataset_json_lists(raw):
    (raw / "imagesTr").rename(raw / "scans")
    listed = {
        case: {"images": [f"scans/{case}_{c:04d}.nii.gz" for c in range(2)], "label": f"labelsTr/{case}.nii.gz"}
        for case in CASES
    }
    write_json(raw / "dataset.json", DATASET_JSON | {"dataset": listed})
    assert command("--labeled", "3", "--to", "28") == 0
    new = raw.with_name("Dataset028_TinyLabeled3")
    assert len(names(new / "imagesTr")) == 12
    assert len(names(new / "imagesUn")) == 14
    assert "dataset" not in json.loads((new / "dataset.json").read_text())


def test_refusals_leave_no_new_dataset(raw, capsys):
    assert "--to: the dataset id must lie between 1 and 999; got 0" in refusal(
        capsys, raw, "--labeled", "1", "--to", "0"
    )
    message = refusal(capsys, raw, "--labeled", "1", "--to", "27")
    assert (
        "27 belongs to Dataset027_Tiny, so Dataset027_TinyLabeled1 cannot have it. Choose another id with --to"
        in message
    )
    (raw / "labelsTr" / "p1_a.nii.gz").unlink()
    message = refusal(capsys, raw, "--labeled", "p1", "--to", "28")
    assert "every labeled case must have a label; these have none: p1_a. Add the labels" in message
    save_case(raw, "Un", "p2_b", 5)
    message = refusal(capsys, raw, "--labeled", "p3", "--to", "28")
    assert "a case must be either in imagesTr or in imagesUn; in both: p2_b" in message


def test_a_full_disk_leaves_nothing(raw, capsys, monkeypatch):
    def full(*_):
        raise OSError("No space left on device")

    monkeypatch.setattr(labeled_subset.os, "link", full)
    monkeypatch.setattr(labeled_subset.shutil, "copy2", full)
    message = refusal(capsys, raw, "--labeled", "3", "--to", "28")
    assert "the dataset could not be written (No space left on device). Free some disk space" in message
    assert names(raw.parent) == [NAME]


def test_an_existing_dataset(raw, capsys):
    command("--labeled", "3", "--to", "28")
    assert "the dataset exists already. Choose another id with --to" in refusal(
        capsys, raw, "--labeled", "3", "--to", "28"
    )
    new = raw.with_name("Dataset028_TinyLabeled3")
    message = refusal(capsys, raw, "--labeled", "3", "--to", "28", "--overwrite")
    assert "the dataset also holds imagesUn. Move these away first." in message
    shutil.rmtree(new / "imagesUn")
    before = names(new / "labelsTr")
    assert command("--labeled", "3", "--to", "28", "--overwrite", "--seed", "5") == 0
    assert names(new / "labelsTr") != before
    assert len(names(new / "imagesUn")) == 14


def test_nothing_is_half_written(raw, preprocessed, monkeypatch):
    write_json(raw / "splits_final.json", FOLDS)
    write_json(preprocessed / "splits_final.json", FOLDS)
    write, done = split_files.write_json, []

    def killed(path, content):
        if done:
            raise KeyboardInterrupt
        done.append(path)
        write(path, content)

    with monkeypatch.context() as patch:
        patch.setattr(split_files, "write_json", killed)
        assert command("--labeled", "2", "--overwrite") == 130
    assert read(raw) == FOLDS
    assert command("--labeled", "2", "--overwrite") == 0
    assert read(raw) == read(preprocessed) != FOLDS
