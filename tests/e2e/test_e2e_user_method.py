"""A method as a user writes it: one file in a folder of `nnUNet_extTrainer`, with settings and terms of its own."""

from __future__ import annotations

import json
import math
import signal

import pytest
from e2e_nnunet import DATASETS, KILLED_TRAIN, Training, Workspace, read_json, read_mask, remove, shrink
from test_e2e_resume import assert_ends_alike

from nnunet_collab.demo.phantom import write_dataset

pytestmark = pytest.mark.slow

# It logs pseudo labels from its second epoch on, and a variable of its own in the second epoch alone.
USER_FILE = '''
"""My method: confident voxels of the student's own prediction are its labels."""
from __future__ import annotations

from typing import ClassVar, Literal

from nnunet_collab.core.settings import setting
from nnunet_collab.core.types import Term
from nnunet_collab.training.semi_supervised_settings import SemiSupervisedSettings
from nnunet_collab.training.semi_supervised import SemiSupervisedTrainer
from nnunet_collab.training.settings import CNN, StudentSettings

Distance = Literal["squared", "absolute"]


class MySettings(SemiSupervisedSettings):
    """Settings of my method."""

    students: tuple[StudentSettings, ...] = (CNN,)
    tau: float = setting(0.3, "Confidence from which on a voxel is used.", gt=0, lt=1)
    distance: Distance = setting("squared", "How far a prediction is from its label.")
    weight: float = 0.1
    from_epoch: int = 1
    epochs: int = 4
    iterations_per_epoch: int = 2
    val_iterations_per_epoch: int = 1
    save_every: int = 1


class MyMethodTrainer(SemiSupervisedTrainer):
    settings: ClassVar[MySettings] = MySettings()

    def threshold(self):
        return self.settings.tau

    def term_weights(self):
        return {"own": self.settings.weight} if self.current_epoch >= self.settings.from_epoch else {}

    def unsupervised_terms(self, outputs, batch):
        terms = []
        for name, output in outputs.items():
            p = output.logits.softmax(1)
            confidence, label = p.detach().max(1)
            gap = 1 - p.gather(1, label[:, None])[:, 0]
            gap = gap**2 if self.settings.distance == "squared" else gap.abs()
            used = batch.keep & (confidence >= self.settings.tau)
            terms.append(Term(name, "own", self.settings.weight, (gap * used).sum() / used.sum().clamp(min=1)))
            self.pseudo_label_curves.add(name, output.logits, batch.keep, self.settings.tau)
        return terms

    def on_train_epoch_end(self, train_outputs):
        super().on_train_epoch_end(train_outputs)
        if self.current_epoch == 1:
            self.curves.log_variables({"mine/once": 0.5}, self.current_epoch)
'''
TRAINER, STUDENT = "MyMethodTrainer", "MyMethodTrainer_CNN"


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    """A dataset with a case that its split declares unlabeled, and the user's folder."""
    root = tmp_path_factory.mktemp("user")
    workspace = Workspace(root)
    raw = root / "raw" / workspace.dataset("plain")
    write_dataset(raw, n_train=4, n_test=1, seed=0, shape=(6, 48, 48), spacing_mm=(8, 3, 3), kind="plain")
    workspace.run("nnUNetv2_plan_and_preprocess", "-d", DATASETS["plain"], "-c", "2d", "-np", 1, "-npfp", 1, workers=1)
    shrink(workspace.preprocessed("plain") / "nnUNetPlans.json")
    cases = [f"phantomTr{number:03d}" for number in range(4)]
    split = [{"train": cases[:2], "unlabeled": cases[2:3], "val": cases[3:]}]
    (workspace.preprocessed("plain") / "splits_final.json").write_text(json.dumps(split))
    (root / "my_trainers").mkdir()
    (root / "my_trainers" / "my_method.py").write_text(USER_FILE)
    (root / "inputs").mkdir()
    (root / "inputs" / "plain").symlink_to(raw / "imagesTs")
    yield workspace
    remove(root)


def train(workspace, *flags, group="results", killed_at=None, settings=None, **options):
    start = ("nnUNetv2_train",) if killed_at is None else (KILLED_TRAIN, killed_at)
    arguments = (DATASETS["plain"], "2d", 0, "-tr", TRAINER, "-device", "cpu", *flags)
    options = {"nnUNet_extTrainer": workspace.root / "my_trainers", "fails": killed_at is not None, **options}
    done = workspace.run(*start, *arguments, group=group, settings=settings or {"distance": "absolute"}, **options)
    return Training(workspace, "plain", "2d", done, group, TRAINER)


@pytest.fixture(scope="module")
def trained(workspace):
    # As users have it: helper processes are spawned.
    return train(workspace, workers=1, new=True, E2E_FORK=0)


def missing(values):
    return [epoch for epoch, value in enumerate(values) if math.isnan(value)]


def test_it_trains_logs_and_keeps_its_settings(trained):
    kept = trained.checkpoint()["nnunet_collab"]["settings"]
    assert (kept["distance"], kept["tau"], kept["from_epoch"]) == ("absolute", 0.3, 1)
    assert read_json(trained.fold.parent / "plans.json")["nnunet_collab"]["settings"] == kept
    curves = read_json(trained.fold / "curves.json")
    assert missing(curves["pseudo_labels"]["CNN/share used"]) == [0]
    assert missing(curves["losses"]["CNN/own"]) == [0]
    assert missing(curves["variables"]["mine/once"]) == [0, 2, 3]
    assert missing(curves["pseudo_dice"]["CNN"]) == []
    assert (trained.fold / "collab_progress.png").stat().st_size > 0
    assert (trained.fold / "progress.png").stat().st_size > 0
    assert "could not be drawn" not in trained.done.out


def test_killed_and_continued_it_ends_where_the_uninterrupted_one_ends(workspace, trained):
    killed = train(workspace, group="resumed", killed_at="step:6")
    assert killed.done.code == -signal.SIGKILL, killed.done.err
    interrupted = killed.checkpoint(name="checkpoint_latest.pth")
    assert_ends_alike(train(workspace, "--c", group="resumed"), trained, interrupted, ["CNN"])


def test_other_settings_do_not_continue_it(workspace, trained):
    done = train(workspace, "--c", settings={"tau": 0.5}, fails=True).done
    assert "tau: 0.5 here, 0.3 there" in done.err


def test_a_wrong_value_of_its_own_setting_is_one_sentence(workspace):
    done = train(workspace, group="refused", settings={"distance": "cubic"}, fails=True).done
    message = "nnUNet_collab_settings: setting 'distance' must be one of 'squared', 'absolute'; got 'cubic' (str)."
    assert message in done.err


def test_its_student_is_published_and_predicts_without_the_folder(workspace, trained):
    of_trainer = workspace.predict("plain", "2d", TRAINER, "a", nnUNet_extTrainer=workspace.root / "my_trainers")
    of_student = workspace.predict("plain", "2d", STUDENT, "b", nnUNet_extTrainer=None)
    names = sorted(path.name for path in of_student.glob("*.nii.gz"))
    assert names == sorted(path.name for path in of_trainer.glob("*.nii.gz")) != []
    for name in names:
        # The ensemble of one averages probabilities and the student logits, both in half precision: of this hardly
        # trained network's voxels about 0.1 % are on the edge between two classes.
        assert (read_mask(of_student / name) != read_mask(of_trainer / name)).mean() < 0.01
    # Published once more from the fold, as one does after an interrupted end.
    workspace.run("python", "-m", "nnunet_collab", "publish", trained.fold)
