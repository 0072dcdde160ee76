"""Pseudo labels through every output of a student: the weighted sum over the outputs, each against sampled maps."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from teaching import make_method, terms_of
from tiny import LABELS

from nnunet_collab.core.types import StudentOutput
from nnunet_collab.methods.bcp import BCPTrainer
from nnunet_collab.methods.cross_teaching import CPSTrainer, CrossTeachingTrainer
from nnunet_collab.methods.crossmatch import CrossMatchTrainer
from nnunet_collab.methods.fixmatch import FixMatchTrainer, UniMatchTrainer
from nnunet_collab.methods.ldc.trainer import LDCTrainer
from nnunet_collab.methods.mean_teacher import MeanTeacherTrainer, UAMTTrainer
from nnunet_collab.methods.self_training import SelfTrainingTrainer
from nnunet_collab.training.student_outputs import at_size

LOW = {"tau": 0.38}
METHODS = {
    CrossTeachingTrainer: ({}, "pseudo"),
    CPSTrainer: ({}, "pseudo"),
    MeanTeacherTrainer: ({}, "consistency"),
    UAMTTrainer: ({"mc_passes": 2, "entropy_threshold_start": 1.0}, "consistency"),
    FixMatchTrainer: (LOW, "strong"),
    UniMatchTrainer: (LOW, "strong"),
    CrossMatchTrainer: (LOW, "image"),
    LDCTrainer: ({"distance_weight": 0.0, "contrast": "off"}, "consistency"),
    BCPTrainer: ({"start": 0.0}, "unlabeled"),
    SelfTrainingTrainer: ({"start": 0.0}, "unlabeled"),
}


@pytest.fixture
def make(tmp_path, monkeypatch):
    return lambda trainer_class=MeanTeacherTrainer, **options: make_method(
        trainer_class, tmp_path, monkeypatch, **options
    )


def nearest(array, size):
    """Sampled at the centers of a coarser grid's voxels, axis by axis."""
    for axis, (n, length) in enumerate(zip(size, array.shape[-len(size) :], strict=True), array.ndim - len(size)):
        array = np.take(array, [int((i + 0.5) * length / n) for i in range(n)], axis=axis)
    return array


@pytest.mark.parametrize("dtype", [torch.float32, torch.bool])
@pytest.mark.parametrize("size", [(8, 8), (32, 16), (2, 8, 8), (1, 4, 32)])
def test_maps_are_sampled_at_the_nearest_voxels(size, dtype):
    full = (
        torch.rand(2, 3, *(4, 32, 32)[-len(size) :]) > 0.5
        if dtype is torch.bool
        else torch.rand(2, 3, *(4, 32, 32)[-len(size) :])
    )
    for tensor in (full, full[:, 0]):
        found = at_size(tensor, size)
        assert found.dtype is dtype
        assert np.array_equal(found.numpy(), nearest(tensor.numpy(), size))


@pytest.mark.parametrize("kind", LABELS)
@pytest.mark.parametrize("configuration", ["2d", "3d_fullres"])
def test_the_sum_over_outputs_has_nnunets_weights(make, kind, configuration):
    trainer = make(kind=kind, configuration=configuration, changes={"unlabeled_deep_supervision": True})
    patch = trainer.configuration_manager.patch_size
    scales = trainer._get_deep_supervision_scales()
    sizes = [[round(n * s) for n, s in zip(patch, scale, strict=True)] for scale in scales]
    logits = [torch.randn(2, 3, *size) for size in sizes]
    teacher, keep = torch.randn(2, 3, *patch), torch.rand(2, *patch) > 0.3

    def loss(student, teacher, keep):
        return ((student - teacher).square().mean(1) * keep).sum()

    found = trainer.through_heads(loss, StudentOutput(logits[0], None, None, tuple(logits[1:])), teacher, keep)
    # nnU-Net: 1, 1/2, 1/4, ..., the lowest resolution 0, normalized (nnUNetTrainer._build_loss)
    weights = np.array([1 / 2**i for i in range(len(sizes))])
    weights[-1] = 0
    weights /= weights.sum()
    want = 0.0
    for weight, own, size in zip(weights, logits, sizes, strict=True):
        q, k = nearest(teacher.double().numpy(), size), nearest(keep.numpy(), size)
        want += weight * (((own.double().numpy() - q) ** 2).mean(1) * k).sum()
    assert float(found) == pytest.approx(want, rel=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_teaches_all_outputs_unless_switched_off(make, method):
    changes, term = METHODS[method]
    found = {}
    for deep in (True, False):
        trainer = make(method, changes={**changes, "unlabeled_deep_supervision": deep})
        found[deep] = {key: value for key, value in terms_of(trainer).items() if key.endswith(term)}
    student = next(iter(found[True])).split("/")[0]
    assert found[True].keys() == found[False].keys()
    assert float(found[True][f"{student}/{term}"].value) != pytest.approx(
        float(found[False][f"{student}/{term}"].value)
    )


def test_without_deep_supervision_there_is_one_output(make):
    values = [
        terms_of(make(changes={"deep_supervision": False, "unlabeled_deep_supervision": deep}))["CNN/consistency"].value
        for deep in (True, False)
    ]
    assert torch.equal(*values)
