"""nnUNetv2_predict, nnUNetv2_ensemble and nnUNetv2_find_best_configuration on what a training published."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
from e2e_nnunet import (
    DATASETS,
    INTERPRETER,
    STUDENTS,
    TEST_CASE,
    TINY,
    VALIDATION_CASE,
    Training,
    differing_tensors,
    digest,
    read_json,
    read_mask,
)

pytestmark = pytest.mark.slow

MODELS = ("CTRCLTrainer", "CTRCLTrainer_CNN", "CTRCLTrainer_Transformer")
CASES = (VALIDATION_CASE, TEST_CASE)
NO_PACKAGE = {
    "nnUNet_extTrainer": None,
    "nnUNet_collab_settings": None,
    "PYTHONPATH": INTERPRETER,
    "E2E_WITHOUT_PACKAGE": 1,
    "new": True,
}


def probabilities(folder, case):
    """`(C, *S)` float32."""
    return np.load(folder / f"{case}.npz")["probabilities"]


@pytest.fixture(
    scope="session", params=[("plain", "2d"), ("regions_ignore", "3d_fullres")], ids=lambda run: "-".join(run)
)
def predicted(request, trainings):
    """A training and the folder of the predictions of each of its models."""
    kind, configuration = request.param
    training = trainings[kind, configuration]
    folders = {
        model: training.workspace.predict(
            kind, configuration, model, f"predicted/{kind}/{model}", "--save_probabilities"
        )
        for model in MODELS
    }
    return training, folders


def test_every_model_predicts_what_it_was_validated_on_as_it_was_validated(predicted):
    training, folders = predicted
    validated = dict(zip(MODELS, (training.fold, *map(training.student, STUDENTS)), strict=True))
    masks = []
    for model, folder in folders.items():
        mask = read_mask(folder / f"{VALIDATION_CASE}.nii.gz")
        assert np.array_equal(mask, read_mask(validated[model] / "validation" / f"{VALIDATION_CASE}.nii.gz")), model
        assert (folder / f"{TEST_CASE}.nii.gz").is_file()
        masks.append(mask)
    assert len(np.unique(np.stack(masks))) > 1  # or all would be equal anyway


@pytest.mark.parametrize("case", CASES)
def test_the_trainers_own_model_predicts_the_mean_of_its_students(predicted, case):
    _, folders = predicted
    both, cnn, transformer = (probabilities(folders[model], case) for model in MODELS)
    # nnU-Net averages logits over windows and mirrored copies: exactly the mean in each of them, nearly so in the end.
    from_mean = np.abs(both - (cnn + transformer) / 2).mean()
    assert from_mean < 0.2 * min(np.abs(both - cnn).mean(), np.abs(both - transformer).mean())
    assert from_mean < 0.01


def test_ensemble_takes_the_published_students(predicted):
    training, folders = predicted
    inputs = [folders[model] for model in MODELS[1:]]
    output = training.workspace.root / "predicted" / training.kind / "ensemble"
    training.workspace.run("nnUNetv2_ensemble", "-i", *inputs, "-o", output, "-np", 1, "--save_npz", new=True)
    for case in CASES:
        mean = sum(probabilities(folder, case) for folder in inputs) / 2
        assert np.abs(probabilities(output, case) - mean).max() < 2e-3  # stored as half precision
        mask = read_mask(output / f"{case}.nii.gz")
        if training.kind == "plain":
            assert (mask == mean.argmax(axis=0)).mean() > 0.99
        assert mask.shape == read_mask(folders[MODELS[0]] / f"{case}.nii.gz").shape


def test_the_cnn_predicts_the_same_where_this_package_was_never_installed(predicted):
    training, folders = predicted
    workspace = training.workspace
    missing = workspace.run("python", "-c", "import nnunet_collab.core.errors", fails=True, **NO_PACKAGE)
    assert "ModuleNotFoundError: No module named 'nnunet_collab" in missing.err
    alone = workspace.predict(
        training.kind,
        training.configuration,
        "CTRCLTrainer_CNN",
        f"predicted/{training.kind}/without_package",
        "--save_probabilities",
        **NO_PACKAGE,
    )
    for case in CASES:
        with_package = folders["CTRCLTrainer_CNN"]
        mask = read_mask(alone / f"{case}.nii.gz")
        assert np.array_equal(mask, read_mask(with_package / f"{case}.nii.gz"))
        assert np.array_equal(probabilities(alone, case), probabilities(with_package, case))


def test_the_cnn_travels_as_a_zip_to_where_this_package_was_never_installed(trainings, workspace):
    training, archive = trainings["plain", "2d"], workspace.root / "cnn.zip"
    model = ("-d", DATASETS["plain"], "-c", "2d", "-f", 0, "-tr", "CTRCLTrainer_CNN")
    workspace.run("nnUNetv2_export_model_to_zip", *model, "-o", archive, new=True)
    workspace.run("nnUNetv2_install_pretrained_model_from_zip", archive, group="elsewhere", **NO_PACKAGE)
    options = {"group": "elsewhere", **NO_PACKAGE}
    output = workspace.predict("plain", "2d", "CTRCLTrainer_CNN", "predicted/elsewhere", **options)
    validated = training.student("CNN") / "validation" / f"{VALIDATION_CASE}.nii.gz"
    assert np.array_equal(read_mask(output / validated.name), read_mask(validated))


def test_the_transformer_predicts_without_the_doorways(trainings, workspace):
    trainings["plain", "2d"]
    output = workspace.predict("plain", "2d", MODELS[2], "predicted/without_doorways", nnUNet_extTrainer=None)
    validated = workspace.fold("results", "plain", "2d", MODELS[2]) / "validation" / f"{VALIDATION_CASE}.nii.gz"
    assert np.array_equal(read_mask(output / f"{VALIDATION_CASE}.nii.gz"), read_mask(validated))


def test_finds_the_best_configuration_among_the_students_and_their_ensemble(trainings, workspace):
    trainings["plain", "2d"]
    students = MODELS[1:]
    arguments = (DATASETS["plain"], "-c", "2d", "-tr", *students, "-f", 0, "-np", 1)
    workspace.run("nnUNetv2_find_best_configuration", *arguments, new=True)
    folder = workspace.results("results")
    found = read_json(folder / "inference_information.json")
    models = [f"{student}__nnUNetPlans__2d" for student in students]
    assert set(models) <= set(found["all_results"])
    assert len(found["all_results"]) == 3
    for model in models:
        summary = read_json(folder / model / "fold_0" / "validation" / "summary.json")
        assert found["all_results"][model] == pytest.approx(summary["foreground_mean"]["Dice"], abs=1e-6)
    assert (folder / "inference_instructions.txt").is_file()


def test_validation_alone_publishes_and_validates_again(trainings, workspace):
    """With --val on a machine to which only the trainer's own folder was copied."""
    first = trainings["plain", "2d"]
    shutil.copytree(first.fold.parent, workspace.fold("validated", "plain", "2d").parent)
    again = Training(workspace, "plain", "2d", first.done, group="validated")
    shutil.rmtree(again.fold / "validation")
    again.fold.joinpath("checkpoint_best.pth").unlink()
    before = digest(again.fold / "checkpoint_final.pth")
    workspace.train("plain", "2d", "--val", "--npz", settings=TINY, group="validated")
    assert digest(again.fold / "checkpoint_final.pth") == before
    for student in STUDENTS:
        weights = [run.checkpoint(student)["network_weights"] for run in (first, again)]
        assert differing_tensors(*weights) == []
        assert not again.student(student).joinpath("checkpoint_best.pth").exists()
    for folder, old in [(again.fold, first.fold), *((again.student(s), first.student(s)) for s in STUDENTS)]:
        validation = folder / "validation"
        assert (validation / "summary.json").is_file()
        assert (validation / f"{VALIDATION_CASE}.npz").is_file()
        mask = read_mask(validation / f"{VALIDATION_CASE}.nii.gz")
        assert np.array_equal(mask, read_mask(old / "validation" / f"{VALIDATION_CASE}.nii.gz"))
