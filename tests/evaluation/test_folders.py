"""Folders to tables: files of several formats, every complaint, worker processes, the printed table and the CSV."""

from __future__ import annotations

import argparse
import json
import os
from itertools import product

import numpy as np
import pandas as pd
import pytest
import SimpleITK as sitk
from skimage import io

from nnunet_collab.commands import evaluate as command
from nnunet_collab.core.errors import CollabError
from nnunet_collab.evaluation.choices import Options
from nnunet_collab.evaluation.folders import evaluate_folders, workers
from nnunet_collab.evaluation.metrics import ALL_CLASSES, case_metrics, summarize
from nnunet_collab.evaluation.pairing import listed, plan_evaluation

LABELS = {"background": 0, "liver": 1, "cyst": 2}
SPACING_XYZ = (0.5, 2.0, 5.0)  # as SimpleITK writes it; nnU-Net reads (5, 2, 0.5)


def write(file, array, spacing=None):
    file.parent.mkdir(parents=True, exist_ok=True)
    if file.suffix in (".png", ".tif"):
        return io.imsave(file, array.astype(np.uint8), check_contrast=False)
    image = sitk.GetImageFromArray(array.astype(np.uint8))
    image.SetSpacing(spacing or SPACING_XYZ[: array.ndim])
    return sitk.WriteImage(image, str(file))


def describe(folder, labels=LABELS, ending=".nii.gz"):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "dataset.json").write_text(json.dumps({"labels": labels, "file_ending": ending}))


def random_labels(seed, shape=(4, 6, 7), values=(0, 0, 1, 2)):
    return np.random.default_rng(seed).choice(values, size=shape)


@pytest.fixture
def folders(tmp_path):
    describe(tmp_path / "predicted")
    for seed, case in enumerate("ab"):
        write(tmp_path / "predicted" / f"{case}.nii.gz", random_labels(seed))
        write(tmp_path / "labels" / f"{case}.nii.gz", random_labels(seed + 10))
    return tmp_path / "predicted", tmp_path / "labels"


def evaluate(folders, **options):
    return evaluate_folders(*folders, **{"processes": 1, "progress": False, **options})


def complaint(folders, **options):
    with pytest.raises(CollabError) as caught:
        evaluate(folders, **options)
    return str(caught.value)


def test_rows_hold_the_metrics_of_each_class_in_mm(folders):
    frame = evaluate(folders).set_index(["case", "class"])
    assert list(frame.index) == [("a", "liver"), ("a", "cyst"), ("b", "liver"), ("b", "cyst")]
    for (seed, case), (value, name) in product(enumerate("ab"), ((1, "liver"), (2, "cyst"))):
        want = case_metrics(random_labels(seed) == value, random_labels(seed + 10) == value, SPACING_XYZ[::-1])
        assert frame.loc[(case, name)].to_dict() == {**want, "distance_unit": "mm"}


@pytest.mark.parametrize("ending", [".nii.gz", ".nrrd", ".nii"])
def test_the_last_axis_of_the_file_is_the_first_and_has_its_own_spacing(tmp_path, ending):
    describe(tmp_path / "p", {"background": 0, "dot": 1}, ending)
    for folder, z in (("p", 0), ("l", 2)):
        write(tmp_path / folder / f"x{ending}", np.broadcast_to(np.eye(5)[z, :, None, None], (5, 4, 4)))
    assert evaluate((tmp_path / "p", tmp_path / "l"))["hd_mm"].item() == pytest.approx(10.0)  # two slices of 5 mm
    in_voxels = evaluate((tmp_path / "p", tmp_path / "l"))
    assert in_voxels["hd_voxel"].item() == in_voxels["asd_voxel"].item() == pytest.approx(2.0)


@pytest.mark.parametrize(
    ("ending", "unit", "distance"), [(".png", "pixel", 3), (".tif", "pixel", 3), (".nii.gz", "mm", 6)]
)
def test_2d_images_are_measured_in_their_plane(tmp_path, ending, unit, distance):
    describe(tmp_path / "p", {"background": 0, "polyp": 1}, ending)
    image = np.pad(np.ones((4, 4)), [(2, 6), (2, 4)])
    write(tmp_path / "p" / f"x{ending}", np.roll(image, 3, axis=0))
    write(tmp_path / "l" / f"x{ending}", image)
    row = evaluate((tmp_path / "p", tmp_path / "l")).iloc[0]
    assert (row["hd_mm" if unit == "mm" else "hd_voxel"], row["distance_unit"]) == (pytest.approx(distance), unit)
    assert ("hd_mm" in row) == (unit == "mm")
    assert row["mae"] == pytest.approx(24 / 120)
    if ending == ".tif":  # the ending of nnU-Net's 3D reader, too, which has a spacing
        write(tmp_path / "l" / "x.tif", np.zeros((5, 12, 10)))
        assert plan_evaluation(tmp_path / "p", tmp_path / "l").distance_unit == "mm"


def test_regions_and_the_ignore_label_agree_with_nnunet(tmp_path):
    from nnunetv2.evaluation.evaluate_predictions import compute_metrics
    from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO

    describe(tmp_path / "p", {"background": 0, "whole": [1, 2, 3], "core": [2, 3], "enhancing": 3, "ignore": 4})
    files = [tmp_path / folder / "x.nii.gz" for folder in "lp"]
    for seed, file in enumerate(files):
        write(file, random_labels(seed, values=range(5 - seed)))
    frame = evaluate((tmp_path / "p", tmp_path / "l")).set_index("class")
    regions = {"whole": (1, 2, 3), "core": (2, 3), "enhancing": 3}
    theirs = compute_metrics(*map(str, files), SimpleITKIO(), list(regions.values()), ignore_label=4)["metrics"]
    assert list(frame.index) == list(regions)
    for name, region in regions.items():
        dice, jaccard, fp, tp, fn, tn = (theirs[region][key] for key in ("Dice", "IoU", "FP", "TP", "FN", "TN"))
        want = [dice, jaccard, (fp + fn) / (fp + tp + fn + tn)]
        assert frame.loc[name, ["dice", "jaccard", "mae"]].tolist() == pytest.approx(want, rel=1e-12)


@pytest.mark.slow
def test_two_spawned_processes_give_the_same_table_and_a_dead_one_is_told_as_such(folders):
    pd.testing.assert_frame_equal(evaluate(folders, processes=2), evaluate(folders))
    with pytest.raises(CollabError, match=r"one was, probably because memory ran out\. Use -np 1"):  # noqa: SIM117
        with workers(2, progress=False) as run:
            run("dying", os._exit, [1, 1])


@pytest.mark.parametrize("where", ["predicted", "", "labels"])
def test_dataset_json_is_found_near_the_folders_or_given(folders, tmp_path, where):
    (folders[0] / "dataset.json").unlink()
    assert "dataset.json must name the classes; there is none at" in complaint(folders)
    describe(tmp_path / where)
    assert plan_evaluation(*folders).dataset_json.samefile(tmp_path / where / "dataset.json")
    describe(tmp_path / "other", {"background": 0, "all": [1, 2]})
    assert evaluate(folders, dataset_json=tmp_path / "other" / "dataset.json")["class"].tolist() == ["all", "all"]
    assert f"none at {tmp_path / 'no.json'}. Give it" in complaint(folders, dataset_json=tmp_path / "no.json")


def test_an_unusable_dataset_json_is_named(folders):
    for content, found in (
        ("{", "JSONDecodeError"),
        ('{"labels": {"a": 1}}', "KeyError: 'file_ending'"),
        ('{"labels": {"background": 0, "ignore": 1}, "file_ending": ".nii.gz"}', "ValueError: no foreground class"),
        ('{"labels": {"0": "background"}, "file_ending": ".nii.gz"}', "ValueError: invalid literal"),
        ('{"labels": {"a": 1}, "file_ending": ".docx"}', "RuntimeError: Unable to determine a reader"),
    ):
        (folders[0] / "dataset.json").write_text(content)
        assert f"{folders[0] / 'dataset.json'} gave {found}" in complaint(folders)


def test_folders_that_cannot_be_compared(folders, tmp_path):
    predictions, labels = folders
    assert f"the folder of predictions must exist; got {tmp_path / 'no'}" in complaint((tmp_path / "no", labels))
    assert f"the folder of labels must exist; got {tmp_path / 'no'}" in complaint((predictions, tmp_path / "no"))
    assert "the number of processes must be at least 1; got 0" in complaint(folders, processes=0)
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / ".a.nii.gz").touch()
    assert f"says; got 2 (a, b) in {predictions} and none in {tmp_path}" in complaint((predictions, tmp_path / "empty"))


def test_all_problems_are_told_at_once(folders):
    predictions, labels = folders
    good = random_labels(0)
    for folder, case in product(folders, "cdefg"):
        write(folder / f"{case}.nii.gz", good)
    (predictions / "a.nii.gz").unlink()
    (labels / "b.nii.gz").unlink()
    write(predictions / "c.nii.gz", good[:3])
    write(predictions / "d.nii.gz", good, (0.5, 2.0, 5.01))
    write(labels / "e.nii.gz", good * 3)
    (labels / "f.nii.gz").write_bytes(b"no image")
    write(labels / "g.nii.gz", good, (0.5, 2.0, 5.001))  # within the tolerance
    message = complaint(folders)
    assert "found 6 problem(s)" in message
    for part in (
        "every prediction needs a label; without one: 1 (b). Add them, or leave these cases out with --allow-missing.",
        "every label needs a prediction; without one: 1 (a).",
        f"{predictions / 'c.nii.gz'}: the size must be that of its label {labels / 'c.nii.gz'}, (7, 6, 4); "
        "got (7, 6, 3) (x, y, z). Predict",
        f"{predictions / 'd.nii.gz'}: the spacing must be that of its label {labels / 'd.nii.gz'}, (0.5, 2, 5); got "
        "(0.5, 2, 5.01) (x, y, z). Predict the image on which this label was drawn.",
        f"{labels / 'e.nii.gz'} must hold only the values [0, 1, 2] of {predictions / 'dataset.json'}; got 3, 6.",
        f"{labels / 'f.nii.gz'}: cannot be read completely (",
    ):
        assert part in message
    assert "found 4 problem(s)" in complaint(folders, allow_missing=True)


def test_colors_a_predicted_ignore_label_and_long_lists(tmp_path):
    describe(tmp_path / "p", {"background": 0, "polyp": 1, "ignore": 2}, ".png")
    for folder, case in product("pl", range(22)):
        write(tmp_path / folder / f"{case:02}.png", np.full((4, 4), 2))
    write(tmp_path / "l" / "00.png", np.zeros((4, 4, 3)))
    message = complaint((tmp_path / "p", tmp_path / "l"))
    assert "00.png must have one channel; got 3. Save label values, not colors." in message
    assert "01.png must hold only the values [0, 1] of" in message
    assert message.endswith("- and 3 more")  # of 23
    assert listed([f"{n:02}" for n in range(21)]).endswith("18, 19, and 1 more)")


def run_command(*arguments):
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    return command.run(parser.parse_args([*map(str, arguments), "-np", "1"]))


def test_command_prints_a_page_and_writes_a_tidy_csv(folders, tmp_path, capsys):
    predictions, labels = folders
    describe(predictions, {**LABELS, "a structure with a name as long as a sentence": 3, "ignore": 4})
    write(predictions / "c.nii.gz", random_labels(2, values=(0, 1)))
    write(labels / "lonely.nii.gz", random_labels(2))
    output = tmp_path / "out.csv"
    assert run_command("-p", predictions, "-l", labels, "-o", output, "--allow-missing") == 0
    printed = capsys.readouterr().out
    assert max(len(line) for line in printed.splitlines() if not line.startswith(("reads", "wrote", "writes"))) <= 100
    for part in (
        "class Dice Jaccard HD mm HD95 mm ASD mm MAE",
        "Left out, because there is no label: 1 (c).",
        "because there is no prediction: 1 (lonely).",
        "Voxels whose label is 4 (ignore) count as background",
        "left out of Dice, Jaccard and distances (both empty: 2)",
    ):
        assert part in " ".join(printed.split())

    table, frame = pd.read_csv(output), evaluate(folders, allow_missing=True)
    cases = table[table["statistic"] == "case"].drop(columns="statistic")
    pd.testing.assert_frame_equal(cases[frame.columns], frame, check_dtype=False)
    means = table[table["statistic"] == "mean"].set_index("class")
    assert list(means.index) == [*frame["class"].unique(), ALL_CLASSES]
    dice = frame[frame["class"] == "liver"]["dice"]
    assert f"{means.loc['liver', 'dice']:.3f}±{dice.std():.3f}" == f"{dice.mean():.3f}±{dice.std():.3f}" in printed


def test_command_names_pixels_voxels_and_a_single_case(tmp_path, capsys):
    describe(tmp_path / "p", {"background": 0, "polyp": 1}, ".png")
    write(tmp_path / "p" / "x.png", np.eye(5))
    run_command("-p", tmp_path / "p", "-l", tmp_path / "p")
    printed = " ".join(capsys.readouterr().out.split())
    one_case = "polyp 1.000 1.000 0.00 0.00 0.00 0.0000"  # without a spread
    assert "polyp 0.000 mean of classes 0.000" in printed  # the volume error
    for part in (
        "HD95 pixel",
        "share of wrong pixels",
        "distances are in pixels, in the columns named _voxel",
        one_case,
    ):
        assert part in printed


def test_command_prints_voxels_where_asked(folders, capsys):
    run_command("-p", folders[0], "-l", folders[1], "--voxels")
    printed, frame = " ".join(capsys.readouterr().out.split()), evaluate(folders)
    assert "Distances are in voxels and ignore the spacing" in printed
    assert "HD95 voxel ASD voxel" in printed
    assert " mm " not in printed.split("cases in Dice")[0].split("class")[-1]
    assert f"{frame[frame['class'] == 'liver']['asd_voxel'].mean():.2f}±" in printed


def test_command_measures_surface_dice_and_lesions_where_asked(folders, tmp_path, capsys):
    predictions, labels = folders
    tolerances = tmp_path / "tolerances.csv"
    tolerances.write_text("class,tolerance\ncyst,2.5\nliver,5\n")
    output = tmp_path / "out.csv"
    run_command("-p", predictions, "-l", labels, "-o", output, "--nsd_tolerance", tolerances, "--lesions", "cyst")
    printed = " ".join(capsys.readouterr().out.split())
    assert max(map(len, printed.splitlines()[2:]), default=0) <= 100
    for part in (
        "class NSD RVE lesion F1 sensitivity precision lesion Dice",
        "tolerance (mm) cyst 2.5, liver 5.",
        "lesions predicted matched",
        "match if their IoU is at least 0.1, each once",
    ):
        assert part in printed
    table = pd.read_csv(output)
    cases = table[table["statistic"] == "case"].set_index(["case", "class"])
    for (seed, case), (value, name) in product(enumerate("ab"), ((1, "liver"), (2, "cyst"))):
        options = {"nsd_tolerance": 5.0} if name == "liver" else {"nsd_tolerance": 2.5, "lesion_iou": 0.1}
        masks = random_labels(seed) == value, random_labels(seed + 10) == value
        want = case_metrics(*masks, SPACING_XYZ[::-1], **options)
        assert cases.loc[(case, name), list(want)].astype(float).to_dict() == pytest.approx(want, rel=1e-12)
        if name == "liver":
            assert np.isnan(cases.loc[(case, name), "lesion_f1"])
    cyst = cases.xs("cyst", level="class")
    total = [str(int(cyst[f"lesions_{which}"].sum())) for which in ("true", "predicted", "matched")]
    assert f"cyst 2 2 2 0 0 0 {' '.join(total)}" in printed


def test_options_that_do_not_fit_the_classes_are_told_at_once(folders, tmp_path):
    file = tmp_path / "t.json"
    file.write_text('{"liver": 0, "spleen": 2, "spleen": 3}')
    options = Options(str(file), ("cyst", "polyp"), 1.5)
    assert complaint(folders, options=options) == (
        "evaluate: the options must fit the classes; 6 do not. Correct them:\n"
        f"- {file} must hold every class once; spleen is there twice\n"
        f"- {file} must name classes of dataset.json; got spleen\n"
        f"- {file} must hold every class; cyst is missing\n"
        f"- {file} must hold tolerances above 0; that of liver is 0\n"
        "- --lesions must name classes of dataset.json (liver, cyst); got polyp\n"
        "- --lesion_iou must be above 0 and at most 1; got 1.5"
    )
    for given, told in (("-1", "that of liver is -1.0"), ("nan", "that of liver is nan"), ("inf", "of cyst is inf")):
        assert told in complaint(folders, options=Options(given))
    for name, text, told in (
        ("a.json", "[1]", "does not hold a JSON object"),
        ("a.json", "{", "JSONDecodeError"),
        ("a.csv", "class;tolerance\nliver;2", "KeyError"),
        ("no.csv", None, "FileNotFoundError"),
    ):
        if text is not None:
            (tmp_path / name).write_text(text)
        assert told in complaint(folders, options=Options(str(tmp_path / name)))


def test_csv_is_whole_or_not_there(folders, tmp_path, monkeypatch):
    for output in (tmp_path, tmp_path / "nowhere" / "out.csv"):
        with pytest.raises(CollabError, match="-o must be a file in a folder that exists; got "):
            run_command("-p", folders[0], "-l", folders[1], "-o", output)
    frame, output = evaluate(folders), tmp_path / "out.csv"
    output.write_text("the old table")
    monkeypatch.setattr(os, "replace", lambda *_: 1 / 0)  # dies between writing and renaming
    with pytest.raises(ZeroDivisionError):
        command.write_csv(frame, summarize(frame), output)
    assert output.read_text() == "the old table"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["labels", "out.csv", "predicted"]
