"""`nnunet_collab doctor -d`: what a raw dataset holds, what is missing, and what nnU-Net plans or would plan."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image
from unlabeled_images import save_image

from nnunet_collab.commands import doctor as doctor_command
from nnunet_collab.doctor import dataset, facts, planned
from nnunet_collab.doctor.contents import check_contents
from nnunet_collab.doctor.finding import Finding
from nnunet_collab.doctor.probe import Outcome

CONTENT = {
    "channel_names": {"0": "CT"},
    "labels": {"background": 0, "liver": 1, "tumor": 2},
    "numTraining": 3,
    "file_ending": ".nii.gz",
}
NAME = "Dataset050_Own"


@pytest.fixture
def raw(tmp_path, monkeypatch):
    """Three labeled, two unlabeled and one test case; the patient of `a0` and `a1` is `a`."""
    for variable in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        monkeypatch.setenv(variable, str(tmp_path / variable))
        (tmp_path / variable).mkdir()
    folder = tmp_path / "nnUNet_raw" / NAME
    for part, cases in (("Tr", ("a0", "a1", "b0")), ("Un", ("a2", "c0")), ("Ts", ("t0",))):
        for case in cases:
            save_image(folder / f"images{part}" / f"{case}_0000.nii.gz", np.zeros((4, 6, 5), np.int16))
    for case, tumor in (("a0", 3), ("a1", 2), ("b0", 0)):
        label = np.zeros(120, np.uint8)
        label[:20], label[20 : 20 + tumor] = 1, 2
        save_image(folder / "labelsTr" / f"{case}.nii.gz", label.reshape(4, 6, 5))
    (folder / "dataset.json").write_text(json.dumps(CONTENT))
    (folder / "patients.csv").write_text("case,patient\na0,a\na1,a\na2,a\nb0,b\nc0,c\nt0,t\n")
    return folder


def findings(raw):
    return list(check_contents(raw, raw.parents[1] / "nnUNet_preprocessed" / NAME))


def test_cases_patients_and_classes_are_counted(raw):
    assert findings(raw) == [
        Finding("ok", f"{NAME}: 3 labeled, 2 unlabeled, 1 test cases (0 with labels); channels: CT"),
        Finding("ok", f"{NAME}: patients: 2 labeled, 2 unlabeled, 1 test, 4 in all"),
        Finding("ok", f"{NAME}: classes: liver 60 voxels in 3 of 3 cases; tumor 5 voxels in 2 of 3 cases"),
    ]


def test_without_patients_it_says_so(raw):
    (raw / "patients.csv").unlink()
    found = findings(raw)[1]
    assert found.status == "warn"
    assert "nothing says which cases belong to one patient" in found.text
    assert f"{raw / 'patients.csv'}: case,patient" in found.fix
    (raw / "patients.csv").write_text("case,patient\na0,a\n")
    assert findings(raw)[1].status == "FAIL"
    assert "it has no line for a1, b0" in findings(raw)[1].text


def test_lines_of_patients_that_name_no_case_are_told(raw):
    with (raw / "patients.csv").open("a") as file:
        file.write("zoe,z\n")
    found = findings(raw)[1]
    assert found.status == "warn"
    assert found.text.endswith("4 in all; patients.csv names cases that do not exist: zoe")


def test_a_test_patient_that_is_trained_on_is_named(raw):
    (raw / "patients.csv").write_text("case,patient\na0,a\na1,a\na2,a\nb0,b\nc0,c\nt0,c\n")
    assert (findings(raw)[1].status, findings(raw)[1].text.split("; ")[1]) == (
        "warn", "test patients that are trained on: c",
    )  # fmt: skip


def test_what_is_missing_is_named(raw):
    (raw / "labelsTr" / "a1.nii.gz").unlink()
    (raw / "imagesTr" / "b0_0000.nii.gz").unlink()
    save_image(raw / "imagesUn" / "c0_0001.nii.gz", np.zeros((2, 2, 2), np.int16))
    texts = [finding.text for finding in findings(raw) if finding.status == "FAIL"]
    assert f"{raw / 'labelsTr'}: labels of 1 cases are missing: a1" in texts
    assert f"{raw / 'imagesTr'}: images of 1 cases are missing: b0" in texts
    assert f"{raw / 'imagesUn'}: channels of 1 cases are missing: c0" in texts


def test_rare_classes_and_strange_labels_are_named(raw):
    save_image(raw / "labelsTr" / "a0.nii.gz", np.full((4, 6, 5), 7, np.uint8))
    save_image(raw / "labelsTr" / "b0.nii.gz", np.full((4, 6, 5), 0.5, np.float32))
    (raw / "labelsTr" / "a1.nii.gz").write_bytes((raw / "labelsTr" / "a1.nii.gz").read_bytes()[:-9])
    found = findings(raw)
    texts = [finding.text for finding in found if finding.status == "FAIL"]
    assert any("a1.nii.gz: cannot be read completely" in text for text in texts)
    assert f"{NAME}: labels must hold whole numbers; these do not: b0" in texts
    assert f"{NAME}: labels hold the values 7, which dataset.json does not name" in texts
    assert any("In fewer than 2 cases: liver, tumor" in finding.text for finding in found if finding.status == "warn")


def test_plans_that_exist_are_told_in_the_dataset_s_findings(raw):
    folder = raw.parents[1] / "nnUNet_preprocessed" / NAME
    folder.mkdir()
    configuration = {"data_identifier": "x", "patch_size": [256, 224], "batch_size": 12, "spacing": [0.75, 0.5]}
    (folder / "nnUNetPlans.json").write_text(json.dumps({"configurations": {"2d": configuration}}))
    texts = [finding.text for finding in dataset.check_dataset("50")]
    assert f"{NAME}: nnUNetPlans (existing plans): 2d: patch 256 x 224, batch 12, spacing 0.75 x 0.5 mm" in texts
    assert f"{NAME}: 3 labeled, 2 unlabeled, 1 test cases (0 with labels); channels: CT" in texts
    assert dataset.dataset_to_plan("50") is None


def test_a_fingerprint_is_made_of_headers_alone(raw, monkeypatch):
    import SimpleITK as sitk

    assert dataset.dataset_to_plan("50") == raw
    image = sitk.GetImageFromArray(np.zeros((4, 6, 5), np.int16))
    image.SetSpacing((0.5, 0.75, 2.0))
    sitk.WriteImage(image, str(raw / "imagesTr" / "a0_0000.nii.gz"))
    monkeypatch.setattr(sitk, "ReadImage", None)  # no voxel is read
    found = planned.header_fingerprint(raw)
    assert found["shapes_after_crop"] == [[4, 6, 5]] * 3
    assert found["spacings"][0] == [2.0, 0.75, 0.5]
    assert set(found["foreground_intensity_properties_per_channel"]) == {"0"}


def test_pictures_have_the_spacing_that_nnunet_gives_them(tmp_path):
    (tmp_path / "imagesTr").mkdir()
    Image.fromarray(np.zeros((30, 20, 3), np.uint8)).save(tmp_path / "imagesTr" / "a_0000.png")
    (tmp_path / "dataset.json").write_text(json.dumps({**CONTENT, "file_ending": ".png"}))
    found = planned.header_fingerprint(tmp_path)
    assert (found["shapes_after_crop"], found["spacings"]) == ([[1, 30, 20]], [[999.0, 1.0, 1.0]])


def test_the_estimate_says_that_it_is_one():
    outcome = Outcome({"2d": {"patch_size": [64.0, 32.0], "batch_size": 4, "spacing": [1.0, 1.0]}})
    assert planned.estimate(NAME, outcome) == Finding(
        "ok",
        f"{NAME}: by the headers of its images (estimate), nnU-Net would plan "
        "2d: patch 64 x 32, batch 4, spacing 1 x 1 mm",
    )
    assert planned.estimate(NAME, Outcome(error="KeyError: x")).status == "warn"


def test_the_command_asks_the_planner_only_for_what_is_not_planned(raw, monkeypatch):
    asked = {}

    def probe(steps):
        asked.update(steps)
        return {name: Outcome(error="not tried") for name in steps}

    monkeypatch.setattr(doctor_command, "probe", probe)
    assert not any("would plan" in finding.text for finding in doctor_command.findings(None))
    assert "plan" not in asked
    texts = [finding.text for finding in doctor_command.findings("50")]
    assert asked["plan"] == {"name": NAME, "fingerprint": planned.header_fingerprint(raw)}
    assert f"{NAME}: classes: liver 60 voxels in 3 of 3 cases; tumor 5 voxels in 2 of 3 cases" in texts
    assert f"{NAME}: what nnU-Net would plan is not known (not tried)" in texts


@pytest.mark.slow
def test_the_estimate_is_what_nnunet_plans(raw, monkeypatch):
    """Its own planner on its own fingerprint of the same images, which have no border of zeros."""
    from nnunetv2.experiment_planning.dataset_fingerprint import fingerprint_extractor as extracting
    from nnunetv2.experiment_planning.experiment_planners import default_experiment_planner as planning

    rng = np.random.default_rng(0)
    for case in ("a0", "a1", "b0"):
        save_image(raw / "imagesTr" / f"{case}_0000.nii.gz", rng.integers(1, 99, (12, 40, 36)).astype(np.int16))
        save_image(raw / "labelsTr" / f"{case}.nii.gz", rng.integers(0, 3, (12, 40, 36)).astype(np.uint8))
    folder = raw.parents[1] / "nnUNet_preprocessed"
    for module in (planning, extracting):
        monkeypatch.setattr(module, "nnUNet_preprocessed", str(folder), raising=False)
        monkeypatch.setattr(module, "nnUNet_raw", str(raw.parent), raising=False)
    found = facts.plan_facts(NAME, planned.header_fingerprint(raw))  # sets the folder of the plans to its own
    monkeypatch.setattr(planning, "nnUNet_preprocessed", str(folder))
    extracting.DatasetFingerprintExtractor(NAME, 1).run(overwrite_existing=True)
    plans = planning.ExperimentPlanner(NAME).plan_experiment()
    assert set(found) == {key for key, entry in plans["configurations"].items() if "patch_size" in entry}
    for key, entry in found.items():
        wanted = plans["configurations"][key]
        assert entry["patch_size"] == [float(n) for n in wanted["patch_size"]]
        assert entry["batch_size"] == wanted["batch_size"]
        assert entry["spacing"] == pytest.approx([float(n) for n in wanted["spacing"]])
