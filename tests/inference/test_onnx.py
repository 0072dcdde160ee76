"""The ONNX file computes what the network computes, and what does not is refused."""

from __future__ import annotations

import json

import numpy as np
import onnxruntime
import pytest
import torch
from tiny import finish_run, make_batch, make_dataset_json, make_plans, make_trainer
from tiny_data import full_plans
from torch import nn

from nnunet_collab.cli import main
from nnunet_collab.core.errors import CollabError
from nnunet_collab.inference import onnx_case, onnx_network
from nnunet_collab.inference.model_folder import Model
from nnunet_collab.inference.onnx_description import description
from nnunet_collab.inference.publish import publish_fold
from nnunet_collab.methods.ctrcl import CTRCLTrainer

RESAMPLING = {
    f"resampling_fn_{kind}": "resample_data_or_seg_to_shape" for kind in ("data", "seg", "probabilities")
} | {
    f"resampling_fn_{kind}_kwargs": {"is_seg": kind == "seg", "order": 1, "order_z": 0, "force_separate_z": None}
    for kind in ("data", "seg", "probabilities")
}  # fmt: skip


class Session:
    """In the place of onnxruntime's session: a function of the image."""

    def __init__(self, function):
        self.function = function

    def run(self, outputs, inputs):
        return [self.function(torch.from_numpy(inputs["image"])).detach().numpy()]


def model(tmp_path, kind="plain"):
    return Model(
        tmp_path / "Dataset001_Tiny" / "T__nnUNetPlans__2d", ("fold_0",), full_plans(), make_dataset_json(kind)
    )


@pytest.mark.slow
def test_a_student_as_onnx(tmp_path, monkeypatch, capsys):
    plans = {**full_plans(), "foreground_intensity_properties_per_channel": {"0": {"mean": 0.0}}}
    for entry in plans["configurations"].values():
        entry.update(RESAMPLING)
    trainer = make_trainer(CTRCLTrainer, tmp_path, monkeypatch, plans=plans)
    trainer.train_step(make_batch(trainer))
    fold = finish_run(trainer)
    (fold / "progress.png").write_bytes(b"png")
    folder = publish_fold(fold, ["CNN"])[0].parent
    import SimpleITK as sitk

    image = np.random.default_rng(0).normal(size=(3, 40, 36)).astype(np.float32)
    sitk.WriteImage(sitk.GetImageFromArray(image), str(tmp_path / "case_0000.nii.gz"))
    words = [
        "export",
        str(folder),
        "-o",
        str(tmp_path / "m.zip"),
        "--onnx",
        "--case",
        str(tmp_path / "case_0000.nii.gz"),
    ]
    assert main(words) == 0, capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.glob("m*")) == ["m.zip", "m_fold_0.onnx", "m_onnx.json"]
    session = onnxruntime.InferenceSession(str(tmp_path / "m_fold_0.onnx"), providers=["CPUExecutionProvider"])
    network = trainer.group["CNN"].network.eval()
    network.decoder.deep_supervision = False
    for count in (1, 2, 5):
        patch = torch.randn((count, 1, 32, 32))
        with torch.no_grad():
            expected = network(patch).numpy()
        np.testing.assert_allclose(session.run(None, {"image": patch.numpy()})[0], expected, rtol=0, atol=1e-4)
    told = json.loads((tmp_path / "m_onnx.json").read_text())
    (check,) = told["files"].values()
    assert check["fold"] == "fold_0"
    assert check["largest_difference_of_logits_on_random_patches"] < 1e-4
    assert check["share_of_other_voxels_in_a_case"] <= 1e-4
    assert told["output"]["shape"] == ["batch", 3, 32, 32]


def test_a_network_that_computes_something_else_is_refused():
    network = nn.Conv2d(1, 3, 1)
    same = onnx_network.largest_difference(network, Session(network), 1, (8, 8))
    assert same == 0
    with torch.no_grad():
        shifted = onnx_network.largest_difference(network, Session(lambda x: network(x) + 1e-3), 1, (8, 8))
    onnx_network.require_equal(same, "fold_0")
    for wrong in (shifted, float("nan")):
        with pytest.raises(CollabError, match=r"logits of fold_0 within 0\.0001"):
            onnx_network.require_equal(wrong, "fold_0")


def test_a_batch_that_is_not_dynamic_is_seen():
    network = nn.Conv2d(1, 3, 1)

    def fixed(image):
        if len(image) != 2:
            raise RuntimeError("batch of 2 expected")
        return network(image)

    with pytest.raises(RuntimeError, match="batch of 2"):
        onnx_network.largest_difference(network, Session(fixed), 1, (8, 8))


@pytest.mark.parametrize("kind", ["plain", "regions"])
def test_the_case_counts_voxels_with_another_label(tmp_path, kind):
    outputs = 3 if kind == "plain" else 2
    network = nn.Conv2d(1, outputs, 3, padding=1).eval()
    image = np.random.default_rng(0).normal(size=(1, 2, 40, 36)).astype(np.float32)
    tiny = model(tmp_path, kind)
    assert onnx_case.share_of_other_voxels(image, network, Session(network), tiny) == 0
    other = onnx_case.share_of_other_voxels(image, network, Session(lambda x: -network(x)), tiny)
    assert other > 0.1
    onnx_case.require_same(1e-4)
    with pytest.raises(CollabError, match=r"same segmentation but for 0\.0001"):
        onnx_case.require_same(other)


def test_a_case_that_is_none_for_this_model_is_refused(tmp_path):
    (tmp_path / "a_0000.png").touch()
    with pytest.raises(CollabError, match=r"the 1 raw images of a case in the order of their channels, .* \.nii\.gz"):
        onnx_case.preprocessed_case([tmp_path / "a_0000.png"], model(tmp_path))
    (tmp_path / "a.b2nd").write_bytes(b"nothing")
    with pytest.raises(CollabError, match="cannot be read completely"):
        onnx_case.preprocessed_case([tmp_path / "a.b2nd"], model(tmp_path))


def test_what_torch_cannot_export_is_refused_with_the_reason(tmp_path, monkeypatch):
    def fails(*args, **kwargs):
        raise ValueError("\nno symbol for this operator\nand more")

    monkeypatch.setattr(torch.onnx, "export", fails)
    with pytest.raises(CollabError, match=r"cannot for Conv2d \(ValueError: no symbol for this operator\)"):
        onnx_network.export_onnx(nn.Conv2d(1, 3, 1), 1, (8, 8), tmp_path / "x.onnx")


def test_a_cascade_is_refused(tmp_path):
    from argparse import Namespace

    from nnunet_collab.commands.export import _write_onnx

    folder = tmp_path / "Dataset001_Tiny" / "T__nnUNetPlans__3d_cascade_fullres"
    cascade = Model(folder, ("fold_0",), make_plans(), make_dataset_json())
    with pytest.raises(CollabError, match="cascade also gets the segmentation of another model"):
        _write_onnx(cascade, {"fold_0": tmp_path / "x.onnx"}, tmp_path / "x.json", Namespace(case=None))


def test_the_description_says_what_nnunet_does_before_and_after(tmp_path):
    told = description(model(tmp_path), 3, {"m_fold_0.onnx": {"fold": "fold_0"}})
    assert told["input"]["shape"] == ["batch", 1, 32, 32]
    assert told["before"]["normalize_before_resampling"][0]["scheme"] == "ZScoreNormalization"
    assert "mean of the image" in told["before"]["normalize_before_resampling"][0]["meaning"]
    assert told["output"]["labels"] == {"background": 0, "ring": 1, "core": 2}
    assert told["output"]["to_labels"]["function"].startswith("argmax")
    regions = description(model(tmp_path, "regions"), 2, {"a": {}, "b": {}})
    assert regions["output"]["to_labels"]["write_in_this_order"] == [1, 2]
    assert regions["several_files"].startswith("average")
