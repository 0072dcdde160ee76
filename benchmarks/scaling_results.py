"""Made-up results for `scaling.py`: folders of predictions with a table of `nnunet_collab evaluate`, without images."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd

CLASSES = ("RV", "MYO", "LV")


def write_predictions(root: Path, number: int, cases: int) -> Path:
    """The folder of one method's predictions with its table beside it; returns the table's path."""
    rng = np.random.default_rng(number)
    dice = np.clip(rng.normal(0.8 + 0.005 * number, 0.05, cases * len(CLASSES)), 0, 1)
    distance = rng.gamma(2.0, 2.0, len(dice))
    frame = pd.DataFrame(
        {
            "case": np.repeat([f"case{n:04}" for n in range(cases)], len(CLASSES)),
            "class": CLASSES * cases,
            "statistic": "case",
            "dice": dice,
            "jaccard": dice / (2 - dice),
            **{f"{metric}_{unit}": distance for unit in ("mm", "voxel") for metric in ("hd", "hd95", "asd")},
            "mae": 0.01,
            "missed": 0,
            "false_positive": 0,
            "both_empty": 0,
            "distance_unit": "mm",
        }
    )
    folder = root / f"method{number}"
    folder.mkdir()
    labels = {name: value for value, name in enumerate(("background", *CLASSES))}
    facts = {"name": "Made", "labels": labels, "file_ending": ".nii.gz", "numTraining": cases}
    (folder / "dataset.json").write_text(json.dumps(facts))
    table = root / f"method{number}.csv"
    frame.to_csv(table, index=False)
    return folder
