"""What cannot be published is refused with its reason, nothing is overwritten, and nothing is left half-written."""

from __future__ import annotations

import json

import pytest
import torch
from tiny import finish_run, make_trainer

from nnunet_collab.core import checkpoint as checkpoints
from nnunet_collab.core.errors import CollabError
from nnunet_collab.inference.publish import publish_fold
from nnunet_collab.methods.ctrcl import CTRCLTrainer

CNN, TRANSFORMER = "CTRCLTrainer_CNN__nnUNetPlans__2d", "CTRCLTrainer_Transformer__nnUNetPlans__2d"


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        ("unknown", "has no student Nobody to publish; it has CNN, Transformer."),
        ("unfinished", "has no checkpoint_final.pth, so the training is not finished. Continue it with --c."),
        ("stock", "must be the results folder of a trainer of nnunet_collab; its plans.json is from another"),
        ("no plans", "plans.json: must be a readable JSON file of a results folder; "),
        ("no json", "plans.json: must be a readable JSON file of a results folder; "),
        ("no text", "plans.json: must be a readable JSON file of a results folder; "),
        ("truncated", "checkpoint_final.pth: must be a complete file of this package"),
    ],
)
def test_what_cannot_be_published_is_refused_and_nothing_is_written(fold, spoil, message):
    plans = fold.parent / "plans.json"
    names = ["Nobody"] if spoil == "unknown" else None
    if spoil == "unfinished":
        (fold / "checkpoint_final.pth").unlink()
    elif spoil == "stock":
        content = json.loads(plans.read_text())
        del content["nnunet_collab"]
        plans.write_text(json.dumps(content))
    elif spoil == "no plans":
        plans.unlink()
    elif spoil in ("no json", "no text"):
        plans.write_bytes(b"{" if spoil == "no json" else b"\xff\xfe\x00")
    elif spoil == "truncated":
        content = (fold / "checkpoint_final.pth").read_bytes()
        (fold / "checkpoint_final.pth").write_bytes(content[:1000])
    with pytest.raises(CollabError) as caught:
        publish_fold(fold, names)
    assert message in str(caught.value)
    assert str(fold.parent) in str(caught.value)
    assert not list(fold.parents[1].glob("CTRCLTrainer_[!_]*"))


def test_a_published_student_is_not_published_again(fold):
    folder = publish_fold(fold)[0]
    with pytest.raises(CollabError, match=r"CTRCLTrainer_CNN__nnUNetPlans__2d: is already a published student, CNN\."):
        publish_fold(folder)


DEEPER = {"arch": {"n_conv_per_stage": [1, 1, 1, 2]}}


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"students": {"CNN": DEEPER, "Transformer": {"network": "segformer_b0"}}}, "architecture"),
        ({"patch_size": [32, 64]}, "patch_size"),
    ],
)
def test_a_fold_with_another_network_is_not_put_beside_the_first(fold, tmp_path, monkeypatch, changes, key):
    published = publish_fold(fold)[0]
    before = (published.parent / "plans.json").read_text()
    other = finish_run(make_trainer(CTRCLTrainer, tmp_path, monkeypatch, changes=changes), "fold_1")
    with pytest.raises(CollabError) as caught:
        publish_fold(other)
    message = str(caught.value)
    assert f"all folds of a model must share one plans.json; fold_0 was published with another {key}." in message
    assert "Train with another run_name, or move that folder away." in message
    assert (published.parent / "plans.json").read_text() == before
    assert not (published.parent / "fold_1").exists()


def test_a_fold_whose_plans_another_fold_replaced_is_refused(fold, tmp_path, monkeypatch):
    changes = {"students": {"CNN": DEEPER, "Transformer": {"network": "segformer_b0"}}}
    finish_run(make_trainer(CTRCLTrainer, tmp_path, monkeypatch, changes=changes), "fold_1")
    with pytest.raises(CollabError) as caught:
        publish_fold(fold)
    assert f"{fold / 'checkpoint_final.pth'}: must have been trained with the networks in the plans.json" in str(
        caught.value
    )
    assert "Use a different run_name for each" in str(caught.value)
    assert not list(fold.parents[1].glob("CTRCLTrainer_[!_]*"))


def test_a_training_in_the_students_folder_is_not_overwritten(fold):
    theirs = fold.parents[1] / CNN
    (theirs / "fold_0").mkdir(parents=True)
    plans = (fold.parent / "plans.json").read_text()  # of a run called CNN
    (theirs / "plans.json").write_text(plans)
    (theirs / "fold_0" / "checkpoint_final.pth").write_text("precious")
    with pytest.raises(
        CollabError, match=r"CTRCLTrainer_CNN__.*must hold a published student; it is the results folder of"
    ):
        publish_fold(fold)
    assert (theirs / "fold_0" / "checkpoint_final.pth").read_text() == "precious"
    assert (theirs / "plans.json").read_text() == plans


def test_a_failure_in_the_middle_leaves_no_half_written_file(fold, monkeypatch):
    save, calls = torch.save, []

    def fail_at_the_second(content, path):
        calls.append(path)
        save(content, path)
        if len(calls) == 2:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoints.torch, "save", fail_at_the_second)
    with pytest.raises(CollabError, match="No space left on device"):
        publish_fold(fold)
    results = fold.parents[1]
    assert [path.name for path in (results / CNN / "fold_0").iterdir()] == ["checkpoint_final.pth"]
    assert list((results / TRANSFORMER / "fold_0").iterdir()) == []
    checkpoints.load(results / CNN / "fold_0" / "checkpoint_final.pth")
    monkeypatch.setattr(checkpoints.torch, "save", save)
    assert all((folder / "checkpoint_final.pth").is_file() for folder in publish_fold(fold))


@pytest.mark.parametrize("file", ["checkpoint_final.pth", "checkpoint_best.pth"])
@pytest.mark.parametrize("student", ["CNN", "Transformer"])
@pytest.mark.parametrize("lack", ["all", "one", "shape", "nan"])
def test_a_student_without_all_its_weights_is_not_published(fold, student, lack, file):
    checkpoint = checkpoints.load(fold / file)
    weights = checkpoint["network_weights"]
    names = [name for name in weights if name.startswith(f"students.{student}.network.")]
    if lack == "shape":
        weights[names[0]] = torch.cat([weights[names[0]]] * 2)
    elif lack == "nan":
        weights[names[0]] = torch.full_like(weights[names[0]], float("nan"))
    else:
        for name in names if lack == "all" else names[-1:]:
            del weights[name]
    checkpoints.save(fold / file, checkpoint)
    not_finite = "weights must be finite numbers; 1 tensors"
    message = not_finite if lack == "nan" else f"must hold all weights of student {student}"
    with pytest.raises(CollabError) as caught:
        publish_fold(fold)
    assert str(caught.value).startswith(f"checkpoint {fold / file}: ")
    assert message in str(caught.value)
    assert not list(fold.parents[1].glob("CTRCLTrainer_[!_]*"))
