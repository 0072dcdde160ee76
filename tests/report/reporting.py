"""Trainings and predictions on a toy dataset, as nnU-Net and this package leave them on disk."""

from __future__ import annotations

import argparse
import json
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import SimpleITK as sitk

from nnunet_collab.commands import report as command

LABELS = {"background": 0, "liver": 1, "cyst": 2}
CASES = [f"p{patient}_t{time}" for patient in range(4) for time in range(2)]
SHAPE = (3, 16, 16)
NETWORKS = {"CNN": "plans", "Transformer": "segformer"}


def write_image(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = sitk.GetImageFromArray(array)
    image.SetSpacing((2.0, 1.0, 5.0))
    sitk.WriteImage(image, str(path))


def truth(case):
    labels = np.zeros(SHAPE, dtype=np.uint8)
    shift = CASES.index(case) % 4
    labels[:, 3 : 11 + shift, 4:12] = 1
    labels[1:, 5:8, 6:9] = 2
    return labels


def predicted(case, quality, seed):
    """The truth with a share of its voxels in one class, and some background, wrong."""
    rng = np.random.default_rng([seed, CASES.index(case)])
    labels = truth(case)
    wrong = rng.random(SHAPE) > quality
    return np.where(wrong, np.roll(labels, 3, axis=1), labels).astype(np.uint8)


def write_json(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


class World:
    """Folders of nnU-Net with one dataset, and a way to add trainings."""

    def __init__(self, root, dataset="Dataset001_Toy", patient_pattern=r"(p\d+)_t\d"):
        self.root, self.dataset = root, dataset
        self.raw, self.results = root / "raw" / dataset, root / "results" / dataset
        self.facts = {"name": dataset.split("_")[1], "labels": LABELS, "file_ending": ".nii.gz", "numTraining": 8}
        if patient_pattern:
            self.facts["patient_pattern"] = patient_pattern
        write_json(self.raw / "dataset.json", self.facts)
        for case in CASES:
            noise = np.random.default_rng(CASES.index(case)).normal(size=SHAPE)
            write_image(self.raw / "imagesTr" / f"{case}_0000.nii.gz", (truth(case) * 3 + noise).astype(np.float32))
            write_image(self.raw / "labelsTr" / f"{case}.nii.gz", truth(case))

    def environment(self, monkeypatch):
        for name in ("raw", "results", "preprocessed"):
            monkeypatch.setenv(f"nnUNet_{name}", str(self.root / name))

    def plans(self, trainer, run_name="", seed=0, students=("CNN",), student=None, lr=0.01, **settings):
        record = {
            "trainer": trainer,
            "settings": {
                "students": [{"name": name, "network": NETWORKS[name], "lr": lr, "frozen": ""} for name in students],
                "run_name": run_name,
                "seed": seed,
                "epochs": 2,
                "iterations_per_epoch": 4,
                **settings,
            },
            "students": {name: {"network_class_name": name} for name in students},
        }
        if student:
            record["student"] = student
        architecture = record["students"][student] if student else {"network_class_name": "planned"}
        return {
            "dataset_name": self.dataset,
            "plans_name": "nnUNetPlans",
            "configurations": {"2d": {"architecture": architecture}},
            "nnunet_collab": record,
        }

    def train(self, trainer, run_name="", seed=0, students=("CNN",), *, quality=0.9, cases=CASES, fold=0, **settings):
        """A finished training and its published students; `cases=()` leaves out the validation."""
        name = "_".join(filter(None, (trainer, run_name)))
        run = self.results / f"{name}__nnUNetPlans__2d"
        write_json(run / "plans.json", self.plans(trainer, run_name, seed, students, **settings))
        write_json(run / "dataset.json", self.facts)
        folder = run / f"fold_{fold}"
        write_json(
            folder / "curves.json",
            {
                "epochs": [0, 1],
                "pseudo_dice": {student: [0.5, 0.75] for student in students},
                "losses": {f"{student}/supervised": [1.0, 0.5] for student in students},
                "agreement": [0.8, 0.9] if len(students) > 1 else None,
                "pseudo_labels": {
                    f"{student}/{quantity}": [0.3, 0.6]
                    for student in students
                    for quantity in ("share used", "entropy", "Dice of those used")
                },
                "seconds_per_epoch": [8.0, 10.0],
                "peak_memory_bytes": 2500000000,
                "processes": 2,
            },
        )
        write_json(folder / "debug.json", {"device": "cuda:0", "gpu_name": "A GPU"})
        (folder / "checkpoint_final.pth").touch()
        (folder / "training_log_2026_1_1.txt").write_text(
            f"This split has 6 training and {len(cases)} validation cases.\n"
            "each batch on this process: 1 labeled samples of 6 cases, as nnU-Net has them, and 1 unlabeled ones of 11."
            " A step keeps activations for about 2.0 times as many samples as nnU-Net's\n"
        )
        for index, student in enumerate(students):
            published = run.with_name(f"{name}_{student}__nnUNetPlans__2d")
            write_json(published / "plans.json", self.plans(trainer, run_name, seed, students, student, **settings))
            write_json(published / "dataset.json", self.facts)
            validation = published / f"fold_{fold}" / "validation"
            for case in cases:
                write_image(validation / f"{case}.nii.gz", predicted(case, quality, seed + 100 * index))
            reference = str(self.raw / "labelsTr" / "p0_t0.nii.gz")
            if cases:
                write_json(validation / "summary.json", {"metric_per_case": [{"reference_file": reference}]})
        return run


def evaluation(path, classes=("liver",), unit="mm", *, cases=3, shift=0.0, seed=0):
    """A CSV as `nnunet_collab evaluate` writes it."""
    rng = np.random.default_rng(seed)
    distances = [f"{d}_{u}" for u in ("mm", "voxel") if unit == "mm" or u == "voxel" for d in ("hd", "hd95", "asd")]
    rows = [
        {"case": f"c{case}", "class": name, "statistic": "case", "dice": rng.random() / 2 + shift, "jaccard": 0.25}
        | {distance: 10 * rng.random() for distance in distances}
        | {"mae": 0.0625, "missed": 0, "false_positive": 0, "both_empty": 0, "distance_unit": unit}
        for case in range(cases)
        for name in classes
    ]
    pd.DataFrame(rows).to_csv(path, index=False)
    return path


def report(*arguments):
    """Run the command; the folder of the report."""
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    args = parser.parse_args([*map(str, arguments), "-np", "1"])
    assert command.run(args) == 0
    return args.output


class Page(HTMLParser):
    """Tables, links and text of a page; fails on tags that are not closed in order."""

    VOID = ("meta", "link", "img", "line", "br", "input", "hr")

    def __init__(self, path):
        super().__init__()
        self.tables, self.links, self.text, self.tags, self.open = [], [], "", [], []
        self.feed(Path(path).read_text(encoding="utf-8"))
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        self.tags.append(tag)
        self.links += [attributes[name] for name in ("href", "src") if name in attributes]
        if tag == "table":
            selects = json.loads(attributes["data-selects"])
            self.tables.append({"csv": attributes["data-csv"], "selects": selects, "head": [], "rows": []})
        elif tag == "tr" and "tbody" in self.open:
            self.tables[-1]["rows"].append([])
        elif tag in ("td", "th") and "tbody" in self.open:
            self.tables[-1]["rows"][-1].append([""])
        elif tag == "small" and "tbody" in self.open:
            self.tables[-1]["rows"][-1][-1].append("")
        elif tag == "th":
            self.tables[-1]["head"].append("")
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.text += data
        if "tbody" in self.open and self.open[-1] in ("td", "th", "small"):
            self.tables[-1]["rows"][-1][-1][-1] += data
        elif "thead" in self.open and self.open[-1] == "th":
            self.tables[-1]["head"][-1] += data
