"""nnU-Net's targets read right, and nnU-Net's own loss for every student."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from nnunetv2.training.loss.compound_losses import DC_and_CE_loss
from nnunetv2.training.loss.deep_supervision import DeepSupervisionWrapper
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from tiny import LABELS, make_batch, make_trainer

from nnunet_collab.core.types import StudentOutput
from nnunet_collab.training.supervision import drop_lowest_resolution, read_truth, supervised_loss
from nnunet_collab.training.trainer import CollabTrainer

LABEL_MAP = torch.tensor([[[0, 1, 2], [3, 2, 3]], [[3, 3, 0], [1, 1, 2]]], dtype=torch.int16)  # (2, 2, 3), 3 is ignored
SIZES = [(8, 12), (4, 6), (2, 3)]


def lists_and_tensors(target):
    return [target, [target, target[..., ::2]]]


@pytest.mark.parametrize("as_list", [0, 1])
def test_plain_labels(as_list):
    labels = LABEL_MAP % 3
    truth = read_truth(lists_and_tensors(labels.unsqueeze(1))[as_list], has_regions=False, ignore_label=None)
    assert truth.regions is None
    assert torch.equal(truth.labels, labels.long())
    assert truth.keep.dtype is torch.bool
    assert truth.keep.all()


@pytest.mark.parametrize("as_list", [0, 1])
@pytest.mark.parametrize("dtype", [torch.int16, torch.float32])
def test_the_ignore_label_is_cleared_and_not_kept(as_list, dtype):
    target = LABEL_MAP.unsqueeze(1).to(dtype)
    truth = read_truth(lists_and_tensors(target)[as_list], has_regions=False, ignore_label=3)
    assert truth.keep.tolist() == [[[True] * 3, [False, True, False]], [[False, False, True], [True] * 3]]
    assert truth.labels.tolist() == [[[0, 1, 2], [0, 2, 0]], [[0, 0, 0], [1, 1, 2]]]
    assert truth.labels.dtype is torch.int64
    assert torch.equal(target, LABEL_MAP.unsqueeze(1).to(dtype))  # the loader's tensor is not written to


@pytest.mark.parametrize("as_list", [0, 1])
@pytest.mark.parametrize("ignore_label", [None, 3])
@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8])
def test_regions_and_the_channel_of_ignored_voxels(as_list, ignore_label, dtype):
    whole, core, ignored = (LABEL_MAP > 0) & (LABEL_MAP < 3), LABEL_MAP == 2, LABEL_MAP == 3
    channels = [whole, core] if ignore_label is None else [whole, core, ignored]
    target = torch.stack(channels, dim=1).to(dtype)
    truth = read_truth(lists_and_tensors(target)[as_list], has_regions=True, ignore_label=ignore_label)
    assert torch.equal(truth.regions, torch.stack([whole, core], dim=1))
    assert truth.regions.dtype is torch.bool
    assert torch.equal(truth.keep, torch.ones_like(whole) if ignore_label is None else ~ignored)
    assert not truth.labels.any()
    assert truth.labels.shape == whole.shape


def stock_loss(kind, *, deep_supervision=True, is_ddp=False):
    """What nnU-Net's trainer builds for such labels."""
    has_regions, has_ignore = "regions" in kind, "ignore" in kind
    scales = [[1, 1], [0.5, 0.5], [0.25, 0.25]]
    return nnUNetTrainer._build_loss(
        SimpleNamespace(
            label_manager=SimpleNamespace(has_regions=has_regions, ignore_label=3 if has_ignore else None),
            configuration_manager=SimpleNamespace(batch_dice=False),
            is_ddp=is_ddp,
            enable_deep_supervision=deep_supervision,
            _do_i_compile=lambda: False,
            _get_deep_supervision_scales=lambda: scales,
        )
    )


def make_case(kind):
    """Outputs of three resolutions and their targets."""
    generator = torch.Generator().manual_seed(0)
    outputs, targets = [], []
    for size in SIZES:
        labels = torch.randint(0, 4 if "ignore" in kind else 3, (2, 1, *size), generator=generator)
        regions = torch.cat([(labels > 0) & (labels < 3), labels == 2, labels == 3], dim=1)
        target = regions[:, : 3 if "ignore" in kind else 2] if "regions" in kind else labels
        outputs.append(torch.randn((2, 2 if "regions" in kind else 3, *size), generator=generator).requires_grad_())
        targets.append(target)
    return outputs, targets


@pytest.mark.parametrize("kind", LABELS)
def test_the_supervised_loss_is_nnunets_own(kind):
    (logits, *auxiliary), targets = make_case(kind)
    stock = stock_loss(kind)
    loss = supervised_loss(stock)
    full = StudentOutput(logits, None, None, tuple(auxiliary))
    assert torch.equal(loss(full, targets), stock([logits, *auxiliary], targets).float())
    # A student without deep supervision beside one that has it: full resolution alone, with full weight.
    alone = stock_loss(kind, deep_supervision=False)
    want = alone(logits, targets[0])
    assert torch.equal(loss(StudentOutput(logits, None, None), targets), want)
    assert torch.equal(supervised_loss(alone)(StudentOutput(logits, None, None), targets[0]), want)
    value = loss(full, targets)
    assert value.dtype is torch.float32
    assert value.shape == ()


def test_a_target_that_is_no_list_is_refused_where_resolutions_are_expected():
    (logits, *_), targets = make_case("plain")
    with pytest.raises(ValueError, match="with deep supervision the target must be a list; got one tensor"):
        supervised_loss(stock_loss("plain"))(StudentOutput(logits, None, None), targets[0])


@pytest.mark.parametrize("is_ddp", [False, True])
def test_the_lowest_resolution_weighs_nothing_distributed_or_not(is_ddp):
    loss = stock_loss("plain", is_ddp=is_ddp)
    drop_lowest_resolution(loss)
    assert loss.weight_factors == pytest.approx([2 / 3, 1 / 3, 0])
    assert loss.weight_factors[-1] == 0  # exactly, for a weight of 1e-6 would demand a gradient
    assert loss.weight_factors == pytest.approx(np.asarray(stock_loss("plain").weight_factors))
    drop_lowest_resolution(stock_loss("plain", deep_supervision=False))  # nothing to drop


def cross_entropy(logits, target, kind):
    """Mean over the kept voxels, in float64 and by the definition."""
    logits = logits.detach().double()
    if "regions" in kind:
        inside = target[:, :2].double()
        value = -(inside * logits.sigmoid().log() + (1 - inside) * (-logits).sigmoid().log())
        if "ignore" in kind:  # nnU-Net sums over the regions here, and takes their mean where nothing is ignored
            keep = ~target[:, 2:].bool()
            return (value * keep).sum() / keep.sum()
        return value.mean()
    keep = target[:, 0] != 3
    log_probs = logits.log_softmax(1)
    picked = F.one_hot(target[:, 0].long().clamp(max=2), 3).movedim(-1, 1).double()
    return -((log_probs * picked).sum(1) * keep).sum() / keep.sum()


@pytest.mark.parametrize("kind", LABELS)
def test_cross_entropy_alone(kind, tmp_path, monkeypatch):
    trainer = make_trainer(CollabTrainer, tmp_path, monkeypatch, kind=kind, changes={"seg_loss": "ce"})
    batch = make_batch(trainer, kind)
    outputs = trainer.group(batch["data"])
    cnn, transformer = outputs["CNN"], outputs["Transformer"]
    resolutions = [
        cross_entropy(z, t, kind) for z, t in zip((cnn.logits, *cnn.auxiliary), batch["target"], strict=True)
    ]
    want = (resolutions[0] * 1 + resolutions[1] * 0.5) / 1.5  # the third of three weighs nothing
    assert trainer.supervised(cnn, batch["target"]).item() == pytest.approx(want.item(), rel=1e-5)
    want = cross_entropy(transformer.logits, batch["target"][0], kind)
    assert trainer.supervised(transformer, batch["target"]).item() == pytest.approx(want.item(), rel=1e-5)


@pytest.mark.parametrize("deep_supervision", [False, True])
def test_cross_entropy_of_nothing_is_zero_with_zero_gradient(deep_supervision):
    outputs, targets = make_case("ignore")
    loss = DC_and_CE_loss({}, {}, weight_dice=0, ignore_label=3)
    ignored = [torch.full_like(target, 3) for target in targets]
    if deep_supervision:
        value = supervised_loss(DeepSupervisionWrapper(loss, (2 / 3, 1 / 3, 0.0)))(
            StudentOutput(outputs[0], None, None, tuple(outputs[1:])), ignored
        )
    else:
        value = supervised_loss(loss)(StudentOutput(outputs[0], None, None), ignored[0])
    assert value.item() == 0
    value.backward()
    assert all(not z.grad.any() for z in (outputs if deep_supervision else outputs[:1]))
