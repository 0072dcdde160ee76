"""The dataset of pseudo labels: what it holds, that nnU-Net accepts it, that nobody takes its labels for true ones."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from nnunetv2.experiment_planning import verify_dataset_integrity as integrity

from nnunet_collab.cli import main
from nnunet_collab.core.errors import CollabError
from nnunet_collab.core.files import write_json
from nnunet_collab.core.pseudo_labels import file_digest
from nnunet_collab.splits.patient_folds import patient_folds
from nnunet_collab.training.case_roles import check_patients, deal_by_patient

NAME, NEW = "Dataset050_Toy", "Dataset051_Round1"
SHAPE = (3, 5, 6)
LABELED = ["p0_a", "p1_a", "p2_a", "p3_a"]
UNLABELED = ["p0_x", "q1_x", "q2_x", "q3_x"]  # the first is of a labeled patient
KINDS = {
    "plain": {"background": 0, "ring": 1, "core": 2},
    "ignore": {"background": 0, "ring": 1, "core": 2, "ignore": 3},
    "regions": {"background": 0, "whole": [1, 2], "core": 2},
}


def save(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = sitk.GetImageFromArray(array)
    image.SetSpacing((1.0, 1.5, 4.0))
    image.SetOrigin((3.0, -2.0, 7.0))
    sitk.WriteImage(image, str(path))


def read(path):
    return sitk.GetArrayFromImage(sitk.ReadImage(str(path)))


def blob(shift=0):
    labels = np.zeros(SHAPE, np.uint8)
    labels[:, 1:4, 1 + shift : 4 + shift] = 1
    labels[1, 2, 2 + shift] = 2
    return labels


# Where the second member's blob lies; the ensemble's and the first member's lie at 0.
SHIFTS = {"p0_x": 0, "q1_x": 0, "q2_x": 1, "q3_x": 2}


class Bench:
    """A dataset of four labeled and four unlabeled cases, and predictions of the latter by two folds."""

    def __init__(self, root, monkeypatch, kind="plain"):
        for variable in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
            monkeypatch.setenv(variable, str(root / variable))
            (root / variable).mkdir(parents=True)
        self.root, self.raw = root, root / "nnUNet_raw" / NAME
        self.preprocessed, self.new = root / "nnUNet_preprocessed" / NAME, root / "nnUNet_raw" / NEW
        rng = np.random.default_rng(0)
        for case in LABELED:
            save(self.raw / "imagesTr" / f"{case}_0000.nii.gz", rng.random(SHAPE, np.float32))
            save(self.raw / "labelsTr" / f"{case}.nii.gz", blob())
        for case in UNLABELED:
            save(self.raw / "imagesUn" / f"{case}_0000.nii.gz", rng.random(SHAPE, np.float32))
            for folder in ("ensemble", "fold_0"):
                save(root / folder / f"{case}.nii.gz", blob())
            save(root / "fold_1" / f"{case}.nii.gz", blob(SHIFTS[case]))
        facts = {"channel_names": {"0": "MRI"}, "labels": KINDS[kind], "numTraining": 4, "file_ending": ".nii.gz"}
        facts["patient_pattern"] = r"(\w\d)_\w"
        if kind == "regions":
            facts["regions_class_order"] = [1, 2]
        write_json(self.raw / "dataset.json", facts)
        self.preprocessed.mkdir()
        write_json(self.preprocessed / "nnUNetPlans.json", {"dataset_name": NAME, "configurations": {"2d": {}}})
        write_json(self.preprocessed / "dataset_fingerprint.json", {"spacings": [[4, 1.5, 1]]})
        self.split = patient_folds(LABELED, lambda case: case[:2], folds=2)
        write_json(self.preprocessed / "splits_final.json", self.split)

    def run(self, *words, members=("fold_0", "fold_1")):
        target = ("--to", "51", "--name", "Round1", "--ensemble", str(self.root / "ensemble"))
        found = [str(self.root / member) for member in members]
        return main(["pseudo_label", "-d", "50", *target, "--members", *found, "-np", "1", *words])

    def facts(self, folder=None):
        return json.loads(((folder or self.new) / "dataset.json").read_text())

    def table(self):
        with open(self.new / "pseudo_labels.csv", newline="") as file:
            return {row["case"]: row for row in csv.DictReader(file)}


@pytest.fixture
def bench(tmp_path, monkeypatch):
    return Bench(tmp_path, monkeypatch)


def names(folder):
    return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []


def test_the_stable_images_get_pseudo_labels_and_the_others_stay_unlabeled(bench, capsys):
    assert bench.run("--share", "0.75") == 0
    kept = ["p0_x", "q1_x", "q2_x"]
    assert names(bench.new / "labelsTr") == sorted(f"{case}.nii.gz" for case in (*LABELED, *kept))
    assert names(bench.new / "imagesTr") == sorted(f"{case}_0000.nii.gz" for case in (*LABELED, *kept))
    assert names(bench.new / "imagesUn") == ["q3_x_0000.nii.gz"]
    assert "3 of 4 images have a pseudo label" in capsys.readouterr().out
    facts = bench.facts()
    assert facts["numTraining"] == 7
    assert facts["labels"] == {**KINDS["plain"], "ignore": 3}
    mark = facts["pseudo_labels"]
    assert (mark["of"], mark["round"], mark["share"], mark["threshold"]) == (NAME, 1, 0.75, None)
    assert mark["members"] == ["fold_0", "fold_1"]
    assert mark["all_identical"] is False
    assert mark["cases"] == {case: file_digest(bench.new / "labelsTr" / f"{case}.nii.gz") for case in kept}


def test_uncertain_voxels_get_the_ignore_label_and_certain_ones_the_ensemble_s(bench):
    bench.run("--share", "1")
    for case, shift in SHIFTS.items():
        expected = blob()
        other = blob(shift)
        for index in np.ndindex(SHAPE):
            if other[index] != expected[index]:
                expected[index] = 3
        assert np.array_equal(read(bench.new / "labelsTr" / f"{case}.nii.gz"), expected), case
    for case in LABELED:
        assert np.array_equal(read(bench.new / "labelsTr" / f"{case}.nii.gz"), blob())


def test_the_table_has_origin_and_confidence_of_every_case(bench):
    bench.run("--threshold", "0.5")
    table = bench.table()
    assert {case: row["origin"] for case, row in table.items()} == {
        **dict.fromkeys(LABELED, "true label"),
        **dict.fromkeys(UNLABELED, "pseudo label"),
    }
    assert all(table[case]["confidence"] == "" and table[case]["in_dataset"] == "yes" for case in LABELED)
    assert float(table["q1_x"]["confidence"]) == 1
    first, second = blob(), blob(1)
    dice = [
        2 * int(((first == v) & (second == v)).sum()) / int((first == v).sum() + (second == v).sum()) for v in (1, 2)
    ]
    assert float(table["q2_x"]["confidence"]) == pytest.approx((1 + sum(dice) / 2) / 2)
    kept = {case for case in UNLABELED if table[case]["in_dataset"] == "yes"}
    assert kept == {case for case in UNLABELED if float(table[case]["confidence"]) >= 0.5}


@pytest.mark.parametrize("kind", KINDS)
def test_nn_unet_accepts_the_dataset(tmp_path, monkeypatch, kind):
    bench = Bench(tmp_path, monkeypatch, kind)
    assert bench.run("--share", "1") == 0
    assert 3 in read(bench.new / "labelsTr" / "q2_x.nii.gz")

    class InThisProcess:  # spawned workers would import nnU-Net again
        def get_context(self, _):
            return self

        def Pool(self, _):
            return self

        def __enter__(self):
            return self

        def __exit__(self, *_):
            return None

        def starmap(self, function, arguments):
            return [function(*words) for words in arguments]

    monkeypatch.setattr(integrity, "multiprocessing", InThisProcess())
    integrity.verify_dataset_integrity(str(bench.new), 1)


def test_no_fold_validates_on_pseudo_labels_and_no_validation_patient_is_trained_on(bench):
    bench.run("--share", "1")
    for place in (bench.new, bench.root / "nnUNet_preprocessed" / NEW):
        split = json.loads((place / "splits_final.json").read_text())
        for new, old in zip(split, bench.split, strict=True):
            assert new["val"] == sorted(old["val"])
            of_validation = {"p0_x"} if any(case.startswith("p0") for case in old["val"]) else set()
            assert set(new["train"]) == {*old["train"], *UNLABELED} - of_validation
    assert any("p0_a" in fold["val"] for fold in bench.split)  # so that the rule is seen


def test_patients_csv_says_whose_images_a_fold_leaves_out_and_comes_along(bench):
    table = "case,patient\n" + "".join(f"{case},{case[:2]}\n" for case in [*LABELED, *UNLABELED])
    (bench.raw / "patients.csv").write_text(table)
    facts = {key: value for key, value in bench.facts(bench.raw).items() if key != "patient_pattern"}
    write_json(bench.raw / "dataset.json", {**facts, "patients": f"{NAME}/patients.csv"})
    bench.run("--share", "1")
    split = json.loads((bench.new / "splits_final.json").read_text())
    for fold in split:
        assert ("p0_x" in fold["train"]) == ("p0_a" not in fold["val"])
    assert any("p0_a" in fold["val"] for fold in split)
    assert (bench.new / "patients.csv").read_text() == table
    for place in (bench.new, bench.root / "nnUNet_preprocessed" / NEW):
        assert bench.facts(place)["patients"] == f"{NEW}/patients.csv"


def test_the_plans_are_those_of_the_true_labels(bench):
    bench.run("--share", "1")
    folder = bench.root / "nnUNet_preprocessed" / NEW
    plans = json.loads((folder / "nnUNetPlans.json").read_text())
    assert plans == {"dataset_name": NEW, "configurations": {"2d": {}}}
    fingerprint = "dataset_fingerprint.json"
    assert (folder / fingerprint).read_text() == (bench.preprocessed / fingerprint).read_text()
    assert (folder / "dataset.json").read_text() == (bench.new / "dataset.json").read_text()


def content(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("state", ["absent", "true", "garbage"])
def test_no_label_of_a_test_or_unlabeled_case_is_read(tmp_path, monkeypatch, state):
    found = []
    for root, now in ((tmp_path / "one", "absent"), (tmp_path / "two", state)):
        bench = Bench(root, monkeypatch)
        for folder, cases in (("labelsTs", ["t"]), ("labelsUn", UNLABELED)):
            for case in cases if now != "absent" else ():
                save(bench.raw / folder / f"{case}.nii.gz", blob())
                if now == "garbage":
                    (bench.raw / folder / f"{case}.nii.gz").write_bytes(b"garbage")
        assert bench.run("--share", "1") == 0
        found.append(content(bench.new))
    assert found[0] == found[1]
    assert not any("Ts" in name or "labelsUn" in name for name in found[0])


def test_true_labels_are_not_opened_for_choosing(bench):
    for case in LABELED:
        (bench.raw / "labelsTr" / f"{case}.nii.gz").write_bytes(b"garbage")
    assert bench.run("--share", "1") == 0  # they are linked


def test_a_class_that_no_pseudo_label_has_is_named(bench, capsys):
    for folder in ("ensemble", "fold_0", "fold_1"):
        for case in UNLABELED:
            save(bench.root / folder / f"{case}.nii.gz", np.minimum(blob(), 1))
    assert bench.run("--share", "1") == 0
    assert "Warning: no pseudo label has core." in capsys.readouterr().out
    assert bench.facts()["pseudo_labels"]["absent_classes"] == ["core"]


def test_a_class_that_is_only_in_uncertain_voxels_is_named(bench, capsys):
    for case in UNLABELED:
        save(bench.root / "fold_1" / f"{case}.nii.gz", np.minimum(blob(), 1))
    assert bench.run("--share", "1") == 0
    assert "Warning: no pseudo label has core." in capsys.readouterr().out


def test_members_that_are_all_identical_to_the_ensemble_are_told(bench, capsys):
    assert bench.run("--share", "1", members=("fold_0",)) == 0
    assert "Warning: all predictions of every image are identical" in capsys.readouterr().out
    assert bench.facts()["pseudo_labels"]["all_identical"] is True


def test_an_image_in_which_nothing_is_found_is_left_out(bench, capsys):
    for folder in ("ensemble", "fold_0", "fold_1"):
        save(bench.root / folder / "q1_x.nii.gz", 0 * blob())
    bench.run("--share", "1")
    assert "Left out, because no class is found in them: q1_x." in capsys.readouterr().out
    assert names(bench.new / "imagesUn") == ["q1_x_0000.nii.gz"]


def test_without_a_split_only_fold_all_can_be_trained(bench, capsys):
    (bench.preprocessed / "splits_final.json").unlink()
    assert bench.run("--share", "1") == 0
    assert not (bench.new / "splits_final.json").exists()
    assert "There is no split, so train fold `all`" in capsys.readouterr().out


def test_what_is_left_of_an_interrupted_call_does_no_harm(bench):
    bench.run("--share", "1")
    expected = content(bench.new)
    preprocessed = bench.root / "nnUNet_preprocessed" / NEW
    shutil.move(bench.new, bench.new.with_name(f".{NEW}.partial"))  # killed before the last step
    (bench.new.with_name(f".{NEW}.partial") / "labelsTr" / "stray.nii.gz").touch()
    (preprocessed / "dataset.json").write_text("{")
    assert bench.run("--share", "1") == 0
    assert content(bench.new) == expected
    assert (preprocessed / "dataset.json").read_text() == (bench.new / "dataset.json").read_text()


# ---------------------------------------------------------------- refused


def refusal(bench, capsys, *words, **options):
    before = content(bench.root)
    assert bench.run(*words, **options) == 2
    assert content(bench.root) == before
    return capsys.readouterr().err


def test_arguments(bench, capsys):
    assert "needs either --share or --threshold" in refusal(bench, capsys)
    assert "needs either --share or --threshold" in refusal(bench, capsys, "--share", "1", "--threshold", "0.5")
    assert "--share: must be above 0 and at most 1; got 0.0" in refusal(bench, capsys, "--share", "0")
    assert "--threshold: must lie between 0 and 1" in refusal(bench, capsys, "--threshold", "2")
    assert "fold_7 must exist" in refusal(bench, capsys, "--share", "1", members=("fold_7",))


def test_nothing_stable(bench, capsys):
    for case in UNLABELED:
        save(bench.root / "fold_1" / f"{case}.nii.gz", blob(2))
    found = refusal(bench, capsys, "--threshold", "0.9")
    best = (1 + 18 / 52 / 2) / 2  # the rings share 9 of 26 voxels each, the cores none
    assert f"at least one pseudo label must be stable; none of 4 is. The best agreement is {best:.3f}" in found


def test_every_missing_prediction_is_named(bench, capsys):
    for case in ("q1_x", "q2_x"):
        (bench.root / "fold_0" / f"{case}.nii.gz").unlink()
    found = refusal(bench, capsys, "--share", "1")
    assert "fold_0/q1_x.nii.gz" in found
    assert "fold_0/q2_x.nii.gz" in found


def test_no_unlabeled_images(bench, capsys):
    shutil.rmtree(bench.raw / "imagesUn")
    assert "imagesUn: pseudo labels need unlabeled images" in refusal(bench, capsys, "--share", "1")


@pytest.mark.parametrize(
    ("place", "name"), [("nnUNet_raw", NEW), ("nnUNet_results", NEW), ("nnUNet_raw", "Dataset051_Other")]
)
def test_an_id_that_is_taken(bench, capsys, place, name):
    (bench.root / place / name).mkdir()
    found = refusal(bench, capsys, "--share", "1")
    assert "with --to" in found
    assert name in found


def test_a_dataset_that_has_pseudo_labels_itself(bench, capsys):
    bench.run("--share", "1")
    capsys.readouterr()
    words = ["--ensemble", str(bench.root / "ensemble"), "--members", str(bench.root / "fold_0"), "--share", "1"]
    assert main(["pseudo_label", "-d", "51", "--to", "52", "--name", "X", *words]) == 2
    assert f"Use the dataset from which it was made, {NAME}." in capsys.readouterr().err


# ---------------------------------------------------------------- nobody takes them for true labels


def evaluated(capsys, predictions, labels, output, status=0):
    words = ["evaluate", "-p", str(predictions), "-l", str(labels), "-o", str(output), "-np", "1"]
    assert main(words) == status
    captured = capsys.readouterr()
    if status:
        return captured.err
    with open(output, newline="") as file:
        return captured.out, {row["case"] for row in csv.DictReader(file) if row["statistic"] == "case"}


def test_evaluate_leaves_pseudo_labels_out(bench, capsys):
    bench.run("--share", "1")
    capsys.readouterr()
    predicted = bench.root / "predicted"
    for case in (*LABELED, *UNLABELED):
        save(predicted / f"{case}.nii.gz", blob())
    shutil.copy(bench.new / "dataset.json", predicted)
    out, cases = evaluated(capsys, predicted, bench.new / "labelsTr", bench.root / "table.csv")
    assert cases == set(LABELED)
    assert "because their labels are pseudo labels: 4 (p0_x, q1_x, q2_x, q3_x)" in " ".join(out.split())
    # A copy of the labels elsewhere is recognized, too; true labels of the same cases are used.
    copied = bench.root / "copied"
    shutil.copytree(bench.new / "labelsTr", copied)
    assert evaluated(capsys, predicted, copied, bench.root / "table.csv")[1] == set(LABELED)
    save(copied / "q2_x.nii.gz", blob(1))
    assert evaluated(capsys, predicted, copied, bench.root / "table.csv")[1] == {*LABELED, "q2_x"}


def test_evaluate_refuses_pseudo_labels_alone(bench, capsys):
    bench.run("--share", "1")
    capsys.readouterr()
    predicted = bench.root / "predicted"
    for case in UNLABELED:
        save(predicted / f"{case}.nii.gz", blob())
    shutil.copy(bench.new / "dataset.json", predicted)
    found = evaluated(capsys, predicted, bench.new / "labelsTr", bench.root / "table.csv", status=2)
    assert "predictions must be compared with true labels" in found


def test_report_leaves_pseudo_labels_out_and_compares_with_the_dataset_of_true_labels(bench, capsys):
    bench.run("--share", "1")
    capsys.readouterr()
    # Of the same cases: a model of the dataset with true labels, and one that learned from pseudo labels.
    for name, cases, source in (("plain", LABELED, bench.raw), ("rounds", (*LABELED, *UNLABELED), bench.new)):
        for case in cases:
            save(bench.root / name / f"{case}.nii.gz", blob())
        shutil.copy(source / "dataset.json", bench.root / name)
        plans = {"dataset_name": source.name, "plans_name": "nnUNetPlans", "configurations": {}}
        write_json(bench.root / name / "plans.json", plans)
    labels = ["-l", str(bench.new / "labelsTr"), "-i", str(bench.new / "imagesTr")]
    folders = [str(bench.root / name) for name in ("plain", "rounds")]
    assert main(["report", *folders, "-o", str(bench.root / "report"), *labels, "-np", "1"]) == 0
    with open(bench.root / "report" / "cases.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert {(row["result"], row["case"]) for row in rows} == {(n, c) for n in ("plain", "rounds") for c in LABELED}
    assert {row["dataset"] for row in rows} == {NAME}


def test_split_refuses(bench, capsys):
    bench.run("--share", "1")
    capsys.readouterr()
    assert main(["split", "-d", "51", "--labeled", "1"]) == 2
    assert "a split needs true labels; 4 of its cases have pseudo labels" in capsys.readouterr().err
    assert main(["split", "-d", "51", "--labeled", "1", "--to", "60"]) == 2


def test_audit_counts_an_image_with_a_pseudo_label_as_unlabeled(bench, capsys):
    labeled, unlabeled = (bench.raw / folder for folder in ("imagesTr/p1_a_0000.nii.gz", "imagesUn/q1_x_0000.nii.gz"))
    shutil.copy(labeled, unlabeled)
    bench.run("--share", "1")
    capsys.readouterr()
    assert main(["split", "-d", "51", "--audit"]) == 1
    found = capsys.readouterr().out
    assert "imagesTr/p1_a and imagesUn/q1_x hold the same image" in found
    assert "labeled and unlabeled in fold" in found


def test_our_trainers_refuse_a_split_that_validates_on_pseudo_labels(bench, tmp_path):
    bench.run("--share", "1")
    facts = bench.facts()
    roles = {"train": ["p1_a"], "val": ["q1_x"]}
    with pytest.raises(CollabError, match=r"validation cases must have true labels; these have pseudo labels: q1_x"):
        check_patients("split, fold 0", roles, facts)
    check_patients("split, fold 0", {"train": ["p1_a", "q1_x"], "val": ["p0_a"]}, facts)
    with pytest.raises(CollabError, match="a new split needs true labels"):
        deal_by_patient(tmp_path / "missing.json", Path(tmp_path), facts)
