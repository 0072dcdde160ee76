"""Methods with unlabeled images through nnU-Net's real commands: training, resuming, publishing, and no label read."""

from __future__ import annotations

import math
import shutil
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import blosc2
import numpy as np
import pytest
import torch
from ddp_semi_supervised import CASES as SHARED
from e2e_nnunet import (
    CONFIGURATIONS,
    DATASETS,
    TEST_CASE,
    Training,
    Workspace,
    differing_tensors,
    read_json,
    read_mask,
    remove,
)
from e2e_semi_supervised import (
    SPLIT,
    STUDENTS,
    SUPERVISED,
    WHOLE_PLANS,
    copy_of,
    delete,
    make_workspace,
    replace_by_garbage,
    settings_of,
    train,
)
from test_e2e_distributed import TORCHRUN
from test_e2e_resume import assert_same, set_chance_apart

from nnunet_collab.data.two_streams import TwoStreams

pytestmark = pytest.mark.slow

RUNS = [(trainer, configuration) for trainer in STUDENTS for configuration in CONFIGURATIONS]
WITH_TEACHER = {  # what their checkpoints hold beside the students
    "MeanTeacherTrainer": {"teacher"},
    "UAMTTrainer": {"teacher"},
    "CRLNTrainer": {"teacher", "rectifier", "rectifier_optimizer"},
    "LDCTrainer": {"teacher", "constraints"},
    "BCPTrainer": {"teacher"},
    "SelfTrainingTrainer": {"teacher"},
}
IN_3D = ("MeanTeacherTrainer", "CRLNTrainer", "LDCTrainer", "CMAformerTrainer")
PREDICTED = [
    *((t, "2d", s) for t in STUDENTS if t not in ("SupervisedTrainer", "MeanTeacherTrainer") for s in STUDENTS[t]),
    *((t, "3d_fullres", s) for t in IN_3D for s in STUDENTS[t]),
]
KILLED = [
    *((t, "2d", "student") for t in STUDENTS if t not in ("SupervisedTrainer", "CrossMatchTrainer", "LDCTrainer")),
    *((t, "3d_fullres", "student") for t in ("CrossMatchTrainer", "LDCTrainer")),
    ("MeanTeacherTrainer", "3d_fullres", "teacher"),
]


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    root = tmp_path_factory.mktemp("semi_supervised")
    yield make_workspace(root)
    remove(root)


@pytest.fixture(scope="module")
def runs(workspace):
    """Every trainer in both configurations, two at a time; those in 2d have a loader process."""
    with ThreadPoolExecutor(2) as pool:
        yield {run: pool.submit(train, workspace, run[0], "plain", run[1], workers=int(run[1] == "2d")) for run in RUNS}


@pytest.mark.parametrize(("trainer", "configuration"), RUNS)
def test_trains_validates_and_publishes_each_student(trainer, configuration, runs):
    training = runs[trainer, configuration].result()
    assert "logging issue" not in training.done.out  # nnU-Net's words for curves out of step with the epochs
    run = training.checkpoint()
    assert run["nnunet_collab"]["iteration"] == 4
    curves = run["logging"]
    assert all(len(values) == 2 for values in curves.values()), {key: len(v) for key, v in curves.items()}
    for student in STUDENTS[trainer]:
        published = training.checkpoint(student)
        assert published["trainer_name"] == "nnUNetTrainer"
        summary = read_json(training.student(student) / "validation" / "summary.json")
        assert len(summary["metric_per_case"]) == len(SPLIT["val"])
        assert math.isfinite(curves[f"loss/{student}/supervised"][-1])
        if trainer not in SUPERVISED:
            stages = [f"{student} before", f"{student} after"] if trainer == "CRLNTrainer" else [student]
            for labels in stages:
                assert curves[f"pseudo_used/{labels}"][-1] > 0
                assert 0 < curves[f"pseudo_entropy/{labels}"][-1] <= 1
                assert f"pseudo_quality/{labels}" in curves
    log = "".join(path.read_text() for path in training.fold.glob("training_log_*.txt"))
    if trainer not in SUPERVISED:
        # Two cases of the split and two of imagesUn.
        assert "2 labeled samples of 2 cases, as nnU-Net has them, and 2 unlabeled ones of 4" in log


@pytest.fixture(scope="module")
def predictions(runs, workspace):
    """Of every published model in `PREDICTED`, two at a time: the folder, when `nnUNetv2_predict` has filled it."""
    with ThreadPoolExecutor(2) as pool:
        yield {model: pool.submit(predict_published, workspace, runs, *model) for model in PREDICTED}


def predict_published(workspace, runs, trainer, configuration, student):
    return predict(workspace, runs[trainer, configuration].result(), student)


def predict(workspace, training, student):
    model = f"{training.trainer}_{student}"
    output = f"predicted/{training.group}_{model}_{training.configuration}"
    return workspace.predict(training.kind, training.configuration, model, output, group=training.group)


@pytest.mark.parametrize(("trainer", "configuration", "student"), PREDICTED)
def test_a_published_model_predicts_what_was_validated(trainer, configuration, student, runs, predictions):
    training = runs[trainer, configuration].result()
    assert_predicted_as_validated(training, student, predictions[trainer, configuration, student].result())


def assert_predicted_as_validated(training, student, folder):
    assert set(np.unique(read_mask(folder / f"{TEST_CASE}.nii.gz"))) <= {0, 1, 2, 3}
    (case,) = SPLIT["val"]
    validated = training.student(student) / "validation" / f"{case}.nii.gz"
    assert np.array_equal(read_mask(folder / validated.name), read_mask(validated))


@pytest.mark.parametrize("configuration", CONFIGURATIONS)
def test_crln_publishes_its_teacher_and_rectifies(configuration, runs):
    training = runs["CRLNTrainer", configuration].result()
    run, published = training.checkpoint(), training.checkpoint("CNN")["network_weights"]
    teacher = run["nnunet_collab"]["method"]["teacher"]["weights"]
    assert differing_tensors(published, network_of(teacher)) == []
    assert differing_tensors(published, network_of(run["nnunet_collab"]["trained_weights"])) != []
    curves = run["logging"]
    assert curves["variable/mu"][0] != curves["variable/mu"][1]
    assert curves["pseudo_entropy/CNN before"][1] != curves["pseudo_entropy/CNN after"][1]


def network_of(weights):
    """Those of the CNN itself, without its heads, by the names that nnU-Net gives them."""
    prefix = "students.CNN.network."
    return {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}


@pytest.fixture(scope="module")
def continued(runs, workspace):
    """The trainings in `KILLED`, two at a time: killed in the second epoch and continued, and uninterrupted."""
    with ThreadPoolExecutor(2) as pool:
        yield {key: pool.submit(kill_and_continue, workspace, runs, *key) for key in KILLED}


def kill_and_continue(workspace, runs, trainer, configuration, deploy):
    changes = {"deploy": deploy} if deploy == "teacher" else {}
    reference = runs[trainer, configuration].result()
    if changes:
        reference = train(workspace, trainer, "plain", configuration, group="uninterrupted", **changes)
    # In the second epoch; where there are two optimizers, between the step of the first and that of the second.
    moments = {"CRLNTrainer": "step:8", "CrossTeachingTrainer": "step:6", "CPSTrainer": "step:6"}
    moment, group = moments.get(trainer, "step:4"), f"killed_{configuration}_{deploy}"
    training = train(workspace, trainer, "plain", configuration, group=group, killed_at=moment, **changes)
    assert training.done.code == -signal.SIGKILL, training.done.err
    assert not (training.fold / "checkpoint_final.pth").exists()
    interrupted = training.checkpoint(name="checkpoint_latest.pth")
    assert interrupted["current_epoch"] == 1
    train(workspace, trainer, "plain", configuration, "--c", group=group, new=True, **changes)
    return training, reference


@pytest.mark.parametrize(("trainer", "configuration", "deploy"), KILLED)
def test_killed_and_continued_equals_uninterrupted(trainer, configuration, deploy, continued):
    ends = continued[trainer, configuration, deploy].result()
    ours, theirs = (set_chance_apart(training.checkpoint())[0] for training in ends)
    assert differing_tensors(ours["network_weights"], theirs["network_weights"]) == []
    assert_same(ours, theirs)
    assert ours["nnunet_collab"]["method"].keys() == WITH_TEACHER.get(trainer, set())
    has_heads = trainer in ("CRLNTrainer", "LDCTrainer")
    assert (ours["nnunet_collab"]["trained_weights"] is not None) == (has_heads or deploy == "teacher")


# ---------------------------------------------------------------- no label of an unlabeled case is read


@pytest.fixture(scope="module")
def variants(workspace, tmp_path_factory):
    """The workspace, and copies where the labels of the unlabeled cases are garbage or gone."""
    roots = {name: tmp_path_factory.mktemp(name) for name in ("garbage", "deleted")}
    yield {
        "intact": workspace,
        "garbage": copy_of(workspace, roots["garbage"], replace_by_garbage),
        "deleted": copy_of(workspace, roots["deleted"], delete),
    }
    for root in roots.values():
        remove(root)


@pytest.mark.parametrize(
    ("trainer", "kind", "configuration"),
    [
        ("CrossMatchTrainer", "plain", "2d"),
        ("CrossTeachingTrainer", "ignore", "3d_fullres"),
        ("UniMatchTrainer", "regions", "2d"),
        ("CRLNTrainer", "plain", "2d"),
        ("LDCTrainer", "regions", "3d_fullres"),
        ("BCPTrainer", "regions", "2d"),
        ("SelfTrainingTrainer", "ignore", "3d_fullres"),
    ],
)
def test_labels_of_unlabeled_cases_change_no_bit_of_a_training(
    trainer, kind, configuration, variants, in_process, monkeypatch
):
    ends, forced = {}, watch_crops(monkeypatch)
    for name, where in variants.items():
        one = in_process(trainer, kind, configuration, settings_of(trainer), "leak", where=where)
        one.run_training()
        curves = {key: v for key, v in one.curves.values.items() if not key.endswith("_timestamps")}
        ends[name] = one.group.state_dict(), curves
    batches = 5 * len(ends)  # of a training four, and the one that is dropped at its start
    assert forced["labeled"] == [False, True] * batches
    assert len(forced["unlabeled"]) >= 2 * batches
    assert not any(forced["unlabeled"])
    for name in ("garbage", "deleted"):
        assert differing_tensors(ends[name][0], ends["intact"][0]) == []
        assert_same(ends[name][1], ends["intact"][1], name)


def watch_crops(monkeypatch):
    """By stream of the training batches: whether each crop drawn from now on was forced to hold foreground."""
    forced, make = {"labeled": [], "unlabeled": []}, TwoStreams.__init__

    def make_watched(streams, labeled, unlabeled):
        labeled.get_bbox = noting(labeled.get_bbox, forced["labeled"])
        unlabeled.get_bbox = noting(unlabeled.get_bbox, forced["unlabeled"])
        make(streams, labeled, unlabeled)

    monkeypatch.setattr(TwoStreams, "__init__", make_watched)
    return forced


def noting(get_bbox, forced):
    def note(shape, force_fg, *rest):
        forced.append(force_fg)
        return get_bbox(shape, force_fg, *rest)

    return note


def test_a_label_of_a_labeled_case_does_change_it(workspace, in_process, tmp_path):
    """The other way round, so that the test above cannot pass because nothing matters."""
    other = copy_of(workspace, tmp_path, lambda case: None)
    for case in SPLIT["train"]:
        path = other.preprocessed("plain") / "nnUNetPlans_2d" / f"{case}_seg.b2nd"
        labels = blosc2.open(str(path), mode="r")[:]
        path.unlink()
        blosc2.asarray(np.ascontiguousarray(labels[..., ::-1]), urlpath=str(path))
    ends = []
    for where in (workspace, other):
        one = in_process("CrossMatchTrainer", "plain", "2d", settings_of("CrossMatchTrainer"), "leak", where=where)
        one.run_training()
        ends.append(one.group.state_dict())
    assert differing_tensors(*ends) != []


def test_plans_are_those_of_the_labeled_images_alone(workspace, tmp_path):
    """Planned anew without imagesUn: the same fingerprint and the same plans."""
    other = Workspace(tmp_path)
    raw = Path("raw", workspace.dataset("plain"))
    shutil.copytree(workspace.root / raw, tmp_path / raw, ignore=shutil.ignore_patterns("imagesUn"))
    assert (workspace.root / raw / "imagesUn").is_dir()
    other.run("nnUNetv2_plan_and_preprocess", "-d", DATASETS["plain"], "--no_pp", "-npfp", 1, workers=1)
    pairs = {WHOLE_PLANS: "nnUNetPlans.json", "dataset_fingerprint.json": "dataset_fingerprint.json"}
    for with_unlabeled, without in pairs.items():
        ours, theirs = workspace.preprocessed("plain") / with_unlabeled, other.preprocessed("plain") / without
        assert read_json(ours) == read_json(theirs)


# ---------------------------------------------------------------- two processes


@pytest.fixture(scope="module")
def shared(workspace):
    """The step of every case, of one process and of two."""
    script, results = Path(__file__).with_name("ddp_semi_supervised.py"), []
    for number, start in {1: (script,), 2: (*TORCHRUN, script)}.items():
        output = workspace.root / f"shared_{number}.pt"
        workspace.run(*start, workspace.root / "shared_batches.pt", output, group="shared", new=number > 1)
        results.append(torch.load(output, weights_only=True))
    return results


@pytest.mark.parametrize("case", SHARED)
def test_two_processes_have_the_gradients_of_one(case, shared):
    alone, both = (result[case] for result in shared)
    assert both["loss"] == pytest.approx(alone["loss"], rel=1e-4)
    assert both["terms"].keys() == alone["terms"].keys()
    for name, value in alone["terms"].items():
        assert value != 0, name
        assert both["terms"][name] == pytest.approx(value, rel=1e-4), name
    whole = torch.stack([g.norm() for g in alone["gradients"].values()]).norm()
    assert len(alone["gradients"]) > 20
    for name, a in alone["gradients"].items():
        # Biases before a normalization have gradient 0 but for rounding: compare with the whole student, too.
        assert (a - both["gradients"][name]).norm() <= 1e-3 * a.norm() + 3e-6 * whole, name
    for student, values in alone["curves"].items():
        assert both["curves"][student] == pytest.approx(values, rel=1e-4, abs=1e-6, nan_ok=True)
    # The teacher; the rectifier, whose first momentum is a tenth of its gradient; multipliers, residuals and sizes.
    (state,) = alone["states"]
    assert state.keys() == WITH_TEACHER.get(SHARED[case][0], set())
    assert len(both["states"]) == 2
    for of_one_process in both["states"]:
        torch.testing.assert_close(of_one_process, state, rtol=3e-4, atol=1e-6)  # one float32 step apart


def test_uamt_did_leave_voxels_out(shared):
    """Otherwise its case above would be that of Mean Teacher."""
    every, certain = (shared[0][case]["terms"]["CNN/consistency"] for case in ("mean teacher", "uamt"))
    assert certain != pytest.approx(every, rel=0.05)


@pytest.mark.parametrize("trainer", ["MeanTeacherTrainer", "CRLNTrainer"])
def test_torchrun_keeps_the_share_of_labeled_samples_in_every_process_and_publishes(trainer, workspace, tmp_path):
    changes = {"epochs": 1, "batch_size": 2, "unlabeled_batch_size": 6}
    if trainer == "CRLNTrainer":
        changes["rectify_from_iteration"] = 1  # labels are rectified in the second iteration
    arguments = (tmp_path, DATASETS["plain"], "2d", 0, "-tr", trainer, "-device", "cpu")
    script = Path(__file__).with_name("launch_watched.py")
    settings = settings_of(trainer, **changes)
    done = workspace.run(*TORCHRUN, script, *arguments, settings=settings, group="torchrun", new=True)
    training = Training(workspace, "plain", "2d", done, "torchrun", trainer)
    first, second = (read_json(tmp_path / f"rank_{rank}.json") for rank in range(2))
    assert len(first) == len(second) == 2
    for step in (*first, *second):
        assert (len(step["keys"]), len(step["keys_unlabeled"])) == (1, 3)
        assert set(step["keys"]) <= set(SPLIT["train"])
        assert set(step["keys_unlabeled"]) <= {*SPLIT["unlabeled"], "phantomUn000", "phantomUn001"}
    assert len({step["sum"] for step in (*first, *second)}) == 4  # no process draws what the other one drew
    run = training.checkpoint()["nnunet_collab"]
    assert run["iteration"] == 2
    assert run["method"].keys() == WITH_TEACHER[trainer]
    assert_predicted_as_validated(training, "CNN", predict(workspace, training, "CNN"))
