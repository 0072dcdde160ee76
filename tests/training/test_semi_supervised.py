"""What all semi-supervised methods share: the division of the batch, where unlabeled images come from, the curves."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from teaching import make_method
from tiny import make_batch, make_dataset_json, make_semi_supervised_batch
from tiny_data import EXTRA, FOLD, LABELED, SPLIT_UNLABELED, delete_labels, full_plans, write_data

from nnunet_collab.core.errors import CollabError
from nnunet_collab.methods.cross_teaching import CrossTeachingTrainer
from nnunet_collab.methods.crossmatch import CrossMatchTrainer
from nnunet_collab.methods.mean_teacher import MeanTeacherTrainer
from nnunet_collab.training.preflight import check_fold, unlabeled_in_split


@pytest.fixture
def make(tmp_path, monkeypatch):
    monkeypatch.setenv("nnUNet_n_proc_DA", "0")

    def made(trainer_class=MeanTeacherTrainer, **options):
        return make_method(trainer_class, tmp_path, monkeypatch, plans=full_plans(), **options)

    return made


def log_of(trainer):
    return "".join(path.read_text() for path in Path(trainer.output_folder).glob("training_log*.txt"))


# ---------------------------------------------------------------- the batch


@pytest.mark.parametrize(("planned", "wanted", "unlabeled"), [(1, None, 1), (3, None, 3), (3, 1, 1), (2, 7, 7)])
def test_the_labeled_batch_is_the_planned_one_and_unlabeled_samples_come_on_top(make, planned, wanted, unlabeled):
    trainer = make(changes={"batch_size": planned, "unlabeled_batch_size": wanted})
    assert (trainer.labeled_per_batch, trainer.unlabeled_per_batch) == (planned, unlabeled)


@pytest.mark.parametrize(("size", "ranks", "want"), [(5, 2, [3, 2]), (2, 2, [1, 1]), (7, 3, [3, 2, 2])])
def test_processes_share_the_unlabeled_samples(make, monkeypatch, size, ranks, want):
    trainer = make(changes={"unlabeled_batch_size": size})
    monkeypatch.setattr("nnunet_collab.training.unlabeled_images.world_size", lambda: ranks)
    found = []
    for rank in range(ranks):
        monkeypatch.setattr("nnunet_collab.training.trainer.rank", lambda rank=rank: rank)
        found.append(trainer._unlabeled_on_this_process())
    assert found == want


def test_more_processes_than_unlabeled_samples_are_refused(make, monkeypatch):
    trainer = make(changes={"unlabeled_batch_size": 1})
    monkeypatch.setattr("nnunet_collab.training.unlabeled_images.world_size", lambda: 2)
    with pytest.raises(CollabError, match="2 processes share it, so it must be at least 2; got 1"):
        trainer._unlabeled_on_this_process()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"unlabeled_batch_size": 0}, "setting 'unlabeled_batch_size' must be an integer in [1, 2147483648) or null"),
        ({"loss_scale": 0}, "setting 'loss_scale' must be a finite number > 0"),
        ({"start": -0.1}, "setting 'start' must be a finite number >= 0"),
        ({"start": 1000}, "setting 'start': must be a share of the run in [0, 1), or a whole number of epochs below"),
        ({"start": 2.5}, "setting 'start': must be a share of the run in [0, 1), or a whole number of epochs below"),
    ],
)
def test_settings_that_make_no_sense_are_refused(make, changes, message):
    with pytest.raises(CollabError) as caught:
        make(changes=changes)
    assert message in str(caught.value)


@pytest.mark.parametrize("method", [MeanTeacherTrainer, CrossMatchTrainer])
def test_views_and_kept_voxels_are_read_apart(make, method):
    trainer = make(method)
    content = make_semi_supervised_batch(trainer)
    batch = trainer.read_batch(content)
    assert len(batch.strong) == method.strong_views
    for i, view in enumerate((batch.weak, *batch.strong)):
        assert torch.equal(view, content["views"][:, i : i + 1])
    assert batch.keep.dtype is torch.bool
    assert torch.equal(batch.keep, content["learn_mask"][:, 0] == 0)
    assert len(batch.image) == len(batch.target[0]) == trainer.labeled_per_batch
    assert len(batch.weak) == trainer.unlabeled_crops_per_batch()


# ---------------------------------------------------------------- the data


def cases_in(values, names):
    """Names of the cases that patches of these largest intensities come from."""
    by_value = {value: name for name, value in names.items()}
    return {by_value.get(round(float(value))) for value in values}


@pytest.mark.parametrize("configuration", ["2d", "3d_fullres"])
@pytest.mark.parametrize("method", [CrossTeachingTrainer, CrossMatchTrainer])
def test_a_batch_holds_labeled_cases_and_all_kinds_of_unlabeled_ones(make, tmp_path, method, configuration):
    trainer = make(method, configuration=configuration)
    own = write_data(tmp_path, full_plans(), make_dataset_json(), configuration=configuration)
    delete_labels(own, SPLIT_UNLABELED)
    batches, _ = trainer.get_dataloaders()
    seen = set()
    patch = tuple(trainer.configuration_manager.patch_size)
    for _ in range(10):
        batch = next(batches)
        assert batch["data"].shape == (2, 1, *patch)
        assert batch["views"].shape == (2, 1 + method.strong_views, *patch)
        assert batch["learn_mask"].shape == (2, 1, *patch)
        assert set(batch["keys"]) <= set(LABELED)
        weak = batch["views"][:, 0].flatten(1).max(1).values
        seen |= cases_in(weak, {**SPLIT_UNLABELED, **EXTRA})
        assert cases_in(weak, {**SPLIT_UNLABELED, **EXTRA}) == set(batch["keys_unlabeled"])
    assert seen == {*SPLIT_UNLABELED, *EXTRA}
    text = (
        "each batch on this process: 2 labeled samples of 2 cases, as nnU-Net has them, and 2 unlabeled ones of 4. "
        f"A step keeps activations for about {1 + trainer.kept_passes:.1f} times as many samples as nnU-Net's; if "
        "memory does not suffice, lower unlabeled_batch_size."
    )
    assert text in log_of(trainer)


def test_without_any_unlabeled_case_the_training_is_refused(make, tmp_path):
    trainer = make()
    fold = {"train": [*LABELED, *SPLIT_UNLABELED], "val": ["x"]}
    write_data(tmp_path, full_plans(), make_dataset_json(), fold=fold, extra={})
    with pytest.raises(CollabError) as caught:
        trainer.get_dataloaders()
    raw = tmp_path / "nnUNet_raw" / "Dataset001_Tiny"
    splits = tmp_path / "nnUNet_preprocessed" / "Dataset001_Tiny" / "splits_final.json"
    assert str(caught.value) == (
        f"MeanTeacherTrainer: learns from unlabeled images, too, and found none: {raw / 'imagesUn'} has no image "
        f"CASE_0000.nii.gz of a patient who is not validated on, {splits} declares no case unlabeled in fold 0. Put "
        f"images into imagesUn and run nnunet_collab preprocess_unlabeled, or declare cases unlabeled with "
        f"nnunet_collab split."
    )


def unlabeled_of(trainer):
    """Names in the training's unlabeled dataset."""
    data, _ = trainer.get_tr_and_val_datasets()
    return set(trainer.unlabeled_dataset(data).identifiers)


def put_into_imagesun(root, *cases):
    folder = root / "nnUNet_raw" / "Dataset001_Tiny" / "imagesUn"
    folder.mkdir(parents=True, exist_ok=True)
    for case in cases:
        (folder / f"{case}_0000.nii.gz").touch()


def test_what_was_taken_out_of_imagesun_is_not_used_though_it_is_still_preprocessed(make, tmp_path):
    write_data(tmp_path, full_plans(), make_dataset_json())
    assert unlabeled_of(make()) == {*SPLIT_UNLABELED, "p", "q"}  # there are no raw data
    put_into_imagesun(tmp_path, "p")
    assert unlabeled_of(make()) == {*SPLIT_UNLABELED, "p"}


def test_images_of_patients_who_are_validated_on_are_left_out(make, tmp_path):
    trainer = make()
    trainer.dataset_json["patient_pattern"] = r"([a-z])(?:_\d)?"
    extra = {"x_2": 50, "a_2": 51, "other": 52}  # of x, who is validated on, of a, who is trained with, of nobody
    write_data(tmp_path, full_plans(), make_dataset_json(), extra=extra)
    put_into_imagesun(tmp_path, *extra)
    assert unlabeled_of(trainer) == {*SPLIT_UNLABELED, "a_2", "other"}
    assert "left out of imagesUn, because their patient is validated on in this fold: x_2" in log_of(trainer)


def test_patients_of_a_table_who_are_validated_on_are_left_out(make, tmp_path):
    extra = {"new": 50, "other": 52}
    write_data(tmp_path, full_plans(), make_dataset_json(), extra=extra)
    put_into_imagesun(tmp_path, *extra)
    trainer = make()
    cases = {*LABELED, *SPLIT_UNLABELED, "x"}
    rows = "".join(f"{case},of {case}\n" for case in sorted(cases)) + "new,of x\n"
    Path(trainer.preprocessed_dataset_folder_base, "patients.csv").write_text(f"case,patient\n{rows}")
    assert unlabeled_of(trainer) == {*SPLIT_UNLABELED, "other"}
    assert "left out of imagesUn, because their patient is validated on in this fold: new" in log_of(trainer)


@pytest.mark.parametrize("case", ["a", "x", "u"])
def test_a_name_in_imagesun_is_no_other_cases(make, tmp_path, case):
    write_data(tmp_path, full_plans(), make_dataset_json(), extra={case: 50})
    with pytest.raises(CollabError, match=f"case {case} is in .* and in imagesUn. Rename the case in imagesUn"):
        unlabeled_of(make())


@pytest.mark.parametrize(("role", "ending"), [("train", ".pkl"), ("val", ".pkl"), ("unlabeled", ".b2nd")])
def test_cases_of_the_split_that_are_not_preprocessed_are_named(make, tmp_path, role, ending):
    fold = {"train": [*LABELED], "val": ["x"], "unlabeled": [*SPLIT_UNLABELED]}
    own = write_data(tmp_path, full_plans(), make_dataset_json(), fold={**fold, role: [*fold[role], "typo"]})
    with pytest.raises(CollabError, match=rf"fold 0: must name preprocessed cases; {own} lacks typo. Correct"):
        make().get_dataloaders()
    (own / f"typo{ending}").touch()
    with pytest.raises(Exception, match=r".") as caught:  # an empty image is none; an empty label is another fault
        make().get_dataloaders()
    assert ("must name preprocessed cases" in str(caught.value)) == (role == "unlabeled")


@pytest.mark.parametrize("unlabeled_voxels", [True, False])
def test_voxels_of_the_ignore_label_are_unlabeled_data_unless_switched_off(make, tmp_path, unlabeled_voxels):
    trainer = make(kind="ignore", changes={"unlabeled_voxels": unlabeled_voxels})
    write_data(tmp_path, full_plans(), make_dataset_json("ignore"), kind="ignore")
    batches, _ = trainer.get_dataloaders()
    seen = set()
    for _ in range(12):
        batch = next(batches)
        for key, where in zip(batch["keys_unlabeled"], batch["learn_mask"], strict=True):
            seen.add(str(key))
            if key in LABELED:
                assert (where == 0).any(), key
                assert (where == -1).any(), key
    assert seen == {*SPLIT_UNLABELED, *EXTRA, *(LABELED if unlabeled_voxels else ())}


def test_scribbles_alone_are_enough(make, tmp_path):
    trainer = make(kind="ignore")
    write_data(tmp_path, full_plans(), make_dataset_json("ignore"), kind="ignore",
               fold={"train": list(LABELED), "val": ["x"]}, extra={})  # fmt: skip
    assert set(next(trainer.get_dataloaders()[0])["keys_unlabeled"]) <= set(LABELED)


def test_without_an_ignore_label_labeled_cases_are_no_unlabeled_ones(make, tmp_path):
    trainer = make()
    write_data(tmp_path, full_plans(), make_dataset_json())
    data, _ = trainer.get_tr_and_val_datasets()
    assert trainer.unlabeled_dataset(data).identifiers == sorted([*SPLIT_UNLABELED, *EXTRA])


# ---------------------------------------------------------------- the split


def write_splits(folder, *folds):
    path = folder / "splits_final.json"
    path.write_text(json.dumps(list(folds)))
    return path


@pytest.mark.parametrize("fold", ["all", 1, 4])
def test_a_fold_that_would_use_labels_of_unlabeled_cases_is_refused(fold, tmp_path):
    splits = write_splits(tmp_path, FOLD)
    with pytest.raises(CollabError) as caught:
        check_fold(splits, fold)
    assert str(caught.value) == (
        f"{splits}: declares cases unlabeled, but nnU-Net would use their labels in fold {fold}. Train one of the "
        f"folds 0 to 0, or make a dataset without those labels: nnunet_collab split --to."
    )


@pytest.mark.parametrize("fold", ["all", 0, 7])
def test_a_split_without_unlabeled_cases_is_nnunets_own_business(fold, tmp_path):
    check_fold(tmp_path / "splits_final.json", fold)
    check_fold(write_splits(tmp_path, {"train": ["a"], "val": ["b"]}), fold)


def test_a_sound_split_passes_and_names_the_unlabeled_cases_of_its_fold(tmp_path):
    splits = write_splits(tmp_path, FOLD, {"train": ["a"], "val": ["b"], "unlabeled": ["z"]})
    check_fold(splits, 0)
    assert unlabeled_in_split(splits, 0) == ["u", "v"]
    assert unlabeled_in_split(splits, 1) == ["z"]
    assert unlabeled_in_split(splits, 2) == unlabeled_in_split(splits, "all") == []
    assert unlabeled_in_split(tmp_path / "none.json", 0) == []


def test_a_training_checks_its_split_before_it_starts(make, tmp_path):
    trainer = make()
    write_data(tmp_path, full_plans(), make_dataset_json(), fold={**FOLD, "train": ["a", "u"]})
    with pytest.raises(CollabError, match="fold 0: a case must have one role; case u is in train and in unlabeled"):
        trainer.on_train_start()


# ---------------------------------------------------------------- the curves


def one_epoch(trainer, kind="plain", steps=2):
    """Train and validate as nnU-Net's loop does, without its data and files."""
    trainer.on_train_epoch_start()
    trainer.on_train_epoch_end([trainer.train_step(make_semi_supervised_batch(trainer, kind, s)) for s in range(steps)])
    trainer.network.eval()
    with torch.no_grad():
        trainer.on_validation_epoch_end([trainer.validation_step(make_batch(trainer, kind))])
    return {key: values[-1] for key, values in trainer.curves.values.items() if values}


@pytest.mark.parametrize("kind", ["plain", "ignore", "regions", "regions_ignore"])
def test_the_curves_tell_of_terms_weights_and_pseudo_labels(make, kind):
    trainer = make(CrossTeachingTrainer, kind=kind)
    curves = one_epoch(trainer, kind)
    word, numbers = ("region", (1, 2)) if "regions" in kind else ("class", (0, 1, 2))
    for student in ("CNN", "Transformer"):
        for term in ("supervised", "pseudo"):
            assert np.isfinite(curves[f"loss/{student}/{term}"])
        assert curves[f"weight/{student}/supervised"] == 1.0
        assert 0 < curves[f"weight/{student}/pseudo"] < 0.2
        assert curves[f"pseudo_used/{student}"] == 1  # without a threshold
        assert 0 < curves[f"pseudo_entropy/{student}"] <= 1
        shares = [curves[f"pseudo_{word}_{k}/{student}"] for k in numbers]
        assert all(0 <= share <= 1 for share in shares)
        assert word == "region" or sum(shares) == pytest.approx(1)
        assert f"pseudo_quality/{student}" in curves


def test_the_share_of_used_pseudo_labels_follows_the_threshold(make):
    used = [one_epoch(make(CrossMatchTrainer, changes={"tau": tau}))["pseudo_used/CNN"] for tau in (0.34, 0.42, 0.9999)]
    assert used[0] > used[1] > used[2] == 0


def test_the_quality_is_the_dice_of_the_labels_that_pass_the_threshold(make):
    trainer = make(CrossMatchTrainer, changes={"tau": 0.42})
    curves = one_epoch(trainer)
    batch = make_batch(trainer)
    with torch.no_grad():
        p = trainer.group["CNN"].eval()(batch["data"]).logits.softmax(1)
    used, labels, truth = p.max(1).values >= 0.42, p.argmax(1), batch["target"][0][:, 0]
    assert 0 < used.float().mean() < 1
    dice = [
        2 * ((labels == k) & (truth == k) & used).sum() / (((labels == k) & used).sum() + ((truth == k) & used).sum())
        for k in (1, 2)
    ]
    assert curves["pseudo_quality/CNN"] == pytest.approx(float(torch.stack(dice).nanmean()), rel=1e-6)


@pytest.mark.parametrize(("kind", "named"), [("plain", "class 1"), ("regions", "background")])
def test_pseudo_labels_of_one_class_are_warned_of_in_the_log(make, kind, named):
    trainer = make(CrossTeachingTrainer, kind=kind)
    one_epoch(trainer, kind)
    assert "WARNING" not in log_of(trainer)
    with torch.no_grad():  # the CNN's last layer: whatever it sees
        layer = trainer.group["CNN"].network.decoder.seg_layers[-1]
        layer.weight.zero_()
        layer.bias.copy_(torch.tensor([-9.0, 9.0, -9.0] if kind == "plain" else [-9.0, -9.0]))
    trainer.current_epoch = 1
    trainer.optimizers.step = lambda *_: None
    one_epoch(trainer, kind)
    warning = f"WARNING: in this epoch all used pseudo labels for Transformer were {named}: the unlabeled images teach"
    assert log_of(trainer).count("WARNING") == 1
    assert warning in log_of(trainer)
