"""What the command refuses, that a refusal writes nothing, and what a second run does."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from unlabeled_images import (
    DATASET_JSON,
    NAME,
    contents,
    make_case,
    make_dataset,
    make_plans,
    save_image,
)

from nnunet_collab.cli import main
from nnunet_collab.commands import preprocess_unlabeled as preprocess_unlabeled_command
from nnunet_collab.core.files import write_json
from nnunet_collab.data import unlabeled_preprocessing
from nnunet_collab.data.unlabeled_preprocessing import complete_cases


@pytest.fixture
def dataset(tmp_path, monkeypatch):
    for variable in ("nnUNet_raw", "nnUNet_preprocessed"):
        monkeypatch.setenv(variable, str(tmp_path / variable))
    return make_dataset(tmp_path)


@pytest.fixture
def worked(monkeypatch):
    """Cases that were preprocessed, by configuration."""
    done = []
    preprocess_case = unlabeled_preprocessing.preprocess_case

    def recorded(folder, case, images, **rest):
        done.append((rest["configuration"], case))
        preprocess_case(folder, case, images, **rest)

    monkeypatch.setattr(unlabeled_preprocessing, "preprocess_case", recorded)
    return done


def command(*words, configurations=("2d",)):
    return main(["preprocess_unlabeled", "-d", "7", "-c", *configurations, "-np", "1", *words])


def refusal(capsys, tmp_path, *words, **options):
    """The message of a refusal, after which the disk is as it was."""
    before = contents(tmp_path)
    assert command(*words, **options) == 2
    assert contents(tmp_path) == before
    return capsys.readouterr().err


def test_every_case_of_every_configuration_is_preprocessed_once(dataset, worked, capsys):
    raw, preprocessed = dataset
    assert command(configurations=("2d", "3d_fullres", "3d_bs4", "2d")) == 0
    assert worked == [(name, case) for name in ("2d", "3d_fullres") for case in "abc"]
    folders = sorted(path.name for path in preprocessed.iterdir() if path.is_dir())
    assert folders == ["nnUNetPlans_2d_imagesUn", "nnUNetPlans_3d_imagesUn"]
    out = capsys.readouterr().out
    assert f"reads   {raw / 'imagesUn'} (3 cases), {preprocessed / 'nnUNetPlans'}.json" in out
    assert f"writes  {preprocessed / folders[1]}, for 3d_fullres, 3d_bs4: 3 cases, 0 are complete" in out
    assert "Done: 3 unlabeled cases are ready for 2d, 3d_fullres, 3d_bs4." in out


def test_a_second_run_does_what_is_missing_and_overwrite_does_all(dataset, worked, capsys):
    folder = dataset[1] / "nnUNetPlans_2d_imagesUn"
    command()
    worked.clear()
    (folder / "b.pkl").unlink()
    assert command() == 0
    assert worked == [("2d", "b")]
    assert command() == 0
    assert len(worked) == 1
    worked.clear()
    assert command("--overwrite") == 0
    assert worked == [("2d", case) for case in "abc"]


def test_cases_whose_images_are_gone_are_named_and_deleted_only_on_demand(dataset, capsys):
    raw, preprocessed = dataset
    folder = preprocessed / "nnUNetPlans_2d_imagesUn"
    command()
    for path in raw.glob("imagesUn/[ac]_*"):
        path.unlink()
    capsys.readouterr()
    assert command() == 0
    assert "No longer in imagesUn, kept; --overwrite deletes them: a, c\n" in capsys.readouterr().out
    assert complete_cases(folder) == ["a", "b", "c"]
    assert command("--overwrite") == 0
    assert "No longer in imagesUn, deleted: a, c\n" in capsys.readouterr().out
    assert complete_cases(folder) == ["b"]
    assert not list(folder.glob("[ac]*"))


def test_other_plans(dataset, tmp_path, worked, capsys):
    _, preprocessed = dataset
    command()
    plans = make_plans()
    plans["configurations"]["2d"]["normalization_schemes"] = ["NoNormalization"] * 2
    write_json(preprocessed / "nnUNetPlans.json", plans)
    message = refusal(capsys, tmp_path)
    assert "these were preprocessed with other plans. Preprocess them again: " in message
    assert "nnunet_collab preprocess_unlabeled -d 7 -c 2d -p nnUNetPlans --overwrite" in message
    worked.clear()
    assert command("--overwrite") == 0
    assert len(worked) == 3
    assert command() == 0


def test_a_run_with_overwrite_that_was_interrupted_is_resumed_without(dataset, monkeypatch, worked):
    command()
    worked.clear()

    def interrupted(folder, case, images, **rest):
        if case == "b":
            raise KeyboardInterrupt
        recorded(folder, case, images, **rest)

    recorded = unlabeled_preprocessing.preprocess_case
    with monkeypatch.context() as patch:
        patch.setattr(unlabeled_preprocessing, "preprocess_case", interrupted)
        assert command("--overwrite") == 130
    assert command() == 0
    assert [case for _, case in worked] == ["a", "b", "c"]


def test_a_failure_while_preprocessing_is_one_message(dataset, monkeypatch, capsys):
    monkeypatch.setattr(preprocess_unlabeled_command, "_image_problems", lambda *_: [])
    (dataset[0] / "imagesUn" / "b_0000.nii.gz").write_bytes(b"no image")
    assert command() == 2
    assert "nnunet_collab: case b: it could not be preprocessed (RuntimeError" in capsys.readouterr().err


# ---------------------------------------------------------------- refusals


def test_processes(dataset, tmp_path, capsys):
    assert "-np: the number of processes must be at least 1; got 0." in refusal(capsys, tmp_path, "-np", "0")


@pytest.mark.parametrize("unset", [["nnUNet_raw"], ["nnUNet_preprocessed"], ["nnUNet_raw", "nnUNet_preprocessed"]])
def test_variables(dataset, tmp_path, capsys, monkeypatch, unset):
    for variable in unset:
        monkeypatch.delenv(variable)
    message = refusal(capsys, tmp_path)
    assert f"{' and '.join(unset)}: nnU-Net's variables must be set; they are not." in message
    assert all(f"export {variable}=/path/to/{variable}" in message for variable in unset)


def test_dataset(dataset, tmp_path, capsys):
    raw, _ = dataset
    message = refusal(capsys, tmp_path, "-d", "8")
    assert f"-d: it must be the id or the full name of one dataset in {raw.parent} or " in message
    assert f"; 8 matches none; the datasets there: {NAME}. Correct -d." in message
    (raw.parent / "Dataset007_Other").mkdir()
    assert "7 matches Dataset007_Other and Dataset007_Tiny" in refusal(capsys, tmp_path)
    assert command("-d", NAME) == 0
    shutil.rmtree(raw.parent)
    shutil.rmtree(tmp_path / "nnUNet_preprocessed")
    assert "7 matches none; there is no dataset" in refusal(capsys, tmp_path)


def test_not_planned(dataset, tmp_path, capsys):
    raw, preprocessed = dataset
    message = refusal(capsys, tmp_path, "-p", "other")
    assert f"{preprocessed / 'other.json'}: the file must exist; it does not. Plan the dataset: " in message
    assert "nnUNetv2_plan_and_preprocess -d 7 --verify_dataset_integrity" in message
    (preprocessed / "nnUNetPlans.json").write_text("{")
    assert "nnUNetPlans.json: it must be JSON; it is not (it ends too early, at line 1, column 2). Plan" in refusal(
        capsys, tmp_path
    )
    shutil.rmtree(preprocessed)
    shutil.rmtree(raw / "imagesUn")
    message = refusal(capsys, tmp_path)  # the raw dataset.json is enough to see that there are no images
    assert "preprocess_unlabeled: 2 faults; nothing was written:\n- " in message
    assert "there is no such folder" in message


def test_configurations(dataset, tmp_path, capsys):
    message = refusal(capsys, tmp_path, configurations=("3d_lowres", "3d_cascade_fullres"))
    assert (
        "-c: it must be a configuration of nnUNetPlans: 2d, 3d_fullres, 3d_cascade_fullres, 3d_bs4; got 3d_lowres."
        in message
    )
    assert "-c: 3d_cascade_fullres is a cascade, which needs the segmentation of another model." in message


def test_configurations_that_share_a_folder_but_not_the_preprocessing(dataset, tmp_path, capsys):
    plans = make_plans()
    plans["configurations"]["3d_bs4"]["spacing"] = [9.0, 9.0, 9.0]
    write_json(dataset[1] / "nnUNetPlans.json", plans)
    message = refusal(capsys, tmp_path, configurations=("3d_fullres", "3d_bs4"))
    assert "configurations with the same data_identifier must have the same preprocessing; those of" in message


def test_no_images(dataset, tmp_path, capsys):
    raw, _ = dataset
    for path in raw.glob("imagesUn/*"):
        path.unlink()
    (raw / "imagesUn" / "x.nii.gz").touch()
    message = refusal(capsys, tmp_path)
    assert (
        f"{raw / 'imagesUn'}: it must hold unlabeled images, named like those of imagesTr: CASE_0000.nii.gz; "
        in message
    )
    assert "none of its 1 files is one. Put the images there, without labels." in message
    shutil.rmtree(raw / "imagesUn")
    assert "; there is no such folder. Put the images there" in refusal(capsys, tmp_path)


def test_names_and_channels_all_in_one_message(dataset, tmp_path, capsys):
    raw, _ = dataset
    images = raw / "imagesUn"
    (images / "b_0000.nii.gz").unlink()
    (images / "c_0001.nii.gz").unlink()
    (images / "nonumber.nii.gz").touch()
    make_case(images, "d_seg", 3)
    for case, folder in {"e": "imagesTr", "f": "imagesTs", "g": "labelsTr"}.items():
        make_case(images, case, 4)
        save_image(raw / folder / f"{case}{'' if folder == 'labelsTr' else '_0000'}.nii.gz", np.ones((2, 2, 2)))
    (images / "h_0000.nii.gz").write_bytes((images / "a_0000.nii.gz").read_bytes()[:90])
    save_image(images / "h_0001.nii.gz", np.ones((2, 2, 2)))
    (images / "i_0000.nii.gz").write_text("no image")
    make_case(images, "j", 5)
    save_image(images / "j_0001.nii.gz", np.ones((5, 12, 10)))
    make_case(images, "k", 6)
    save_image(images / "k_0001.nii.gz", np.ones((4, 12, 10)), (1.0, 1.0, 2.0))
    message = refusal(capsys, tmp_path)
    for expected in (
        f"{images}: images must be named CASE_0000.nii.gz; found nonumber.nii.gz. Add the number of the channel.",
        "case b: its channels must be numbered from 0000 without a gap; found b_0001.nii.gz. Add the missing images.",
        "case c: it must have 2 channels, as in dataset.json; found 1 in c_0000.nii.gz. Correct its images.",
        "case d_seg: its name must not end with _seg",
        "case e: its name must be only in imagesUn; it is also in imagesTr. Rename or remove it.",
        "case f: its name must be only in imagesUn; it is also in imagesTs.",
        "case g: its name must be only in imagesUn; it is also in labelsTr.",
        f"case h: {images / 'h_0000.nii.gz'}: cannot be read completely (",
        f"case i: {images / 'i_0000.nii.gz'}: cannot be read completely (",
        "case j: its channels must have the same grid; j_0000.nii.gz has shape (4, 12, 10) and spacing "
        "(1.0, 1.0, 1.0), j_0001.nii.gz has (5, 12, 10) and (1.0, 1.0, 1.0). Resample one to the other.",
        "case k: its channels must have the same grid; k_0000",
    ):
        assert f"- {expected}" in message
    assert "case a" not in message


def test_a_case_that_dataset_json_lists_is_no_unlabeled_one(dataset, tmp_path, capsys):
    """Its files may be anywhere: the list takes the place of imagesTr."""
    _, preprocessed = dataset
    path = preprocessed / "dataset.json"
    listed = {"b": {"images": ["/elsewhere/1.nii.gz"], "label": "/elsewhere/2.nii.gz"}}
    write_json(path, {**json.loads(path.read_text()), "dataset": listed})
    assert "case b: its name must be only in imagesUn; it is also in dataset.json." in refusal(capsys, tmp_path)


def test_images_that_nnunet_s_other_readers_read(dataset, tmp_path, capsys):
    raw, preprocessed = dataset
    write_json(preprocessed / "nnUNetPlans.json", make_plans() | {"image_reader_writer": "NibabelIO"})
    (raw / "imagesUn" / "b_0001.nii.gz").write_text("no image")
    message = refusal(capsys, tmp_path)
    assert "one fault" in message
    assert f"case b: {raw / 'imagesUn' / 'b_0001.nii.gz'}: cannot be read completely (" in message
    make_case(raw / "imagesUn", "b", 1)
    assert command() == 0


def test_color_pictures_have_three_channels_in_one_file(dataset, tmp_path, capsys):
    from skimage import io

    raw, preprocessed = dataset
    shutil.rmtree(raw / "imagesUn")
    (raw / "imagesUn").mkdir()
    rng = np.random.default_rng(0)
    io.imsave(raw / "imagesUn" / "a_0000.png", rng.integers(1, 255, (12, 10, 3), np.uint8), check_contrast=False)
    plans = make_plans() | {"image_reader_writer": "NaturalImage2DIO"}
    write_json(preprocessed / "nnUNetPlans.json", plans)
    write_json(preprocessed / "dataset.json", DATASET_JSON | {"file_ending": ".png"})
    message = refusal(capsys, tmp_path)
    assert "case a: it must have 2 channels, as in dataset.json; found 3 in a_0000.png." in message
    entry = plans["configurations"]["2d"]
    entry |= {"normalization_schemes": ["NoNormalization"] * 3, "use_mask_for_norm": [False] * 3}
    plans["foreground_intensity_properties_per_channel"]["2"] = {}
    write_json(preprocessed / "nnUNetPlans.json", plans)
    colors = {"file_ending": ".png", "channel_names": {"0": "R", "1": "G", "2": "B"}}
    write_json(preprocessed / "dataset.json", DATASET_JSON | colors)
    assert command() == 0
    assert complete_cases(preprocessed / "nnUNetPlans_2d_imagesUn") == ["a"]
