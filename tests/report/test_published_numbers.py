"""Every published number on file, against the papers' tables, typed off them anew in their own layout."""

from __future__ import annotations

import json
from pathlib import Path

import nnunet_collab.report

ROWS = json.loads(Path(nnunet_collab.report.__file__).with_name("published.json").read_text())["rows"]
SCORES = ("dice", "jaccard", "hd95", "asd", "mae")

# CTRCL paper, tables I and II: rows "Vanilla" and "CTRCL (Ours)"; DSC, JAC and HSD (mm), of Kvasir MAE (%), for each of
# the four networks from left to right.
NETWORKS = ("MobileNetV2", "MiT-B0", "ResNet-50", "MiT-B2")
CTRCL = {
    ("Synapse", "18 training, 12 test scans"): """
        73.35 62.69 25.31  75.68 65.67 19.39  75.62 65.67 30.11  77.85 67.64 26.52
        76.09 65.77 17.38  78.03 68.33 15.80  78.64 69.50 21.88  80.81 71.91 19.71""",
    ("ACDC", "100 training, 50 test cases"): """
        86.48 76.88 1.96  88.09 79.40 1.33  88.39 79.82 1.85  89.22 81.12 1.46
        89.01 80.80 1.23  89.84 82.10 1.17  90.52 83.19 1.20  91.19 84.25 1.11""",
    ("Kvasir", "900 training, 100 test images"): """
        86.39 79.64 3.68  89.17 83.64 3.24  87.23 81.12 3.82  89.96 85.02 2.85
        89.66 84.34 2.60  91.81 86.60 2.50  91.68 86.55 2.18  93.12 88.24 1.96""",
}
# CrossMatch paper, tables I (left atrium, V-Net) and II (ACDC, U-Net): Dice, Jaccard, 95HD (voxel), ASD (voxel).
CROSSMATCH = {
    ("Left atrium", "{} of 80 labeled", "V-Net"): """
        4  alone 43.32 31.43 40.19 12.13
        8  alone 79.99 68.12 21.11 5.48
        16 alone 86.03 76.06 14.26 3.51
        80 alone 91.14 83.82 5.75 1.52
        4  UniMatch 86.08 75.83 12.04 2.85
        4  CrossMatch 88.96 80.21 7.75 2.38
        8  UA-MT 85.81 75.41 18.25 5.04
        8  UniMatch 89.09 80.47 12.50 3.59
        8  CrossMatch 91.33 84.11 5.29 1.53
        16 UA-MT 88.18 79.09 9.66 2.62
        16 UniMatch 90.77 83.18 7.21 2.05
        16 CrossMatch 91.61 84.57 5.36 1.57""",
    ("ACDC", "{} of 70 patients labeled", "2D U-Net"): """
        3  alone 47.83 37.01 31.16 12.62
        7  alone 79.41 68.11 9.35 2.70
        70 alone 91.44 84.59 4.30 0.99
        3  UA-MT 46.04 35.97 20.08 7.75
        3  UniMatch 84.38 75.54 5.06 1.04
        3  CrossMatch 88.27 80.17 1.53 0.46
        7  UA-MT 81.65 70.64 6.88 2.02
        7  UniMatch 88.08 80.10 2.09 0.45
        7  CrossMatch 89.08 81.44 1.52 0.52""",
}
# CRLN paper, tables 1 to 4: Dice, Jaccard, ASD (voxel), 95HD (voxel), which is another order. "last" and "best" are its
# column "Best".
CRLN = {
    ("Left atrium", "{} of 80 labeled", "V-Net"): """
        8  last 91.74 84.79 1.46 4.60
        16 last 91.88 85.05 1.46 4.51
        16 best 91.95 85.15 1.45 4.33""",
    ("Pancreas-CT", "{} of 62 labeled", "V-Net"): """
        6  UA-MT 66.44 52.02 3.03 17.04
        6  last 79.17 66.32 1.94 7.27
        6  best 81.24 68.84 3.15 8.38
        12 UA-MT 76.10 62.62 2.43 10.84
        12 last 82.76 70.90 1.35 4.81
        12 best 83.52 71.99 1.46 4.70""",
    ("BraTS 2019", "{} of 250 labeled", "3D U-Net"): """
        25 UA-MT 84.64 74.76 2.36 10.47
        25 CRLN 86.73 77.85 1.67 7.15
        50 UA-MT 85.32 75.93 1.98 8.68
        50 CRLN 87.17 78.19 1.62 6.79""",
}
CHECKPOINTS = {"last": "CRLN (last checkpoint)", "best": "CRLN (best checkpoint)"}
# CMAformer paper, tables I and II: the mean Dice. Cross Teaching: nobody here has seen the table (not verified).
OTHERS = {
    ("Synapse", "not said", "CMAformer", "CMAformer"): {"dice": 87.39},
    ("LiTS 2017", "all labeled", "CMAformer", "CMAformer"): {"dice": 95.62},
    ("LiTS 2017", "half of the slices labeled", "CMAformer-SSL", "CMAformer"): {"dice": 95.27},
}
UNVERIFIED = {
    ("ACDC", "3 of 70 patients labeled", "Cross Teaching", "U-Net, with Swin-UNet"): {"dice": 65.6, "hd95": 16.2},
    ("ACDC", "7 of 70 patients labeled", "Cross Teaching", "U-Net, with Swin-UNet"): {"dice": 86.4, "hd95": 8.6},
}


def of_networks():
    for (dataset, protocol), table in CTRCL.items():
        third = "mae" if dataset == "Kvasir" else "hd95"
        for method, line in zip(("alone", "CTRCL"), table.strip().splitlines(), strict=True):
            numbers = [float(word) for word in line.split()]
            for index, network in enumerate(NETWORKS):
                values = numbers[3 * index : 3 * index + 3]
                yield (dataset, protocol, method, network), dict(zip(("dice", "jaccard", third), values, strict=True))


def of_few_labels(tables, columns):
    for (dataset, protocol, network), table in tables.items():
        for line in table.strip().splitlines():
            labeled, method, *values = line.split()
            key = dataset, protocol.format(labeled), CHECKPOINTS.get(method, method), network
            yield key, dict(zip(columns, map(float, values), strict=True))


def test_every_row_is_the_papers():
    want = {
        **dict(of_networks()),
        **dict(of_few_labels(CROSSMATCH, ("dice", "jaccard", "hd95", "asd"))),
        **dict(of_few_labels(CRLN, ("dice", "jaccard", "asd", "hd95"))),
        **OTHERS,
        **UNVERIFIED,
    }
    assert len(want) == len(ROWS) == 63
    found = {
        (row["dataset"], row["protocol"], row["method"], row["network"]): {k: row[k] for k in SCORES if k in row}
        for row in ROWS
    }
    assert found == want


def test_every_row_names_its_unit_its_source_and_whether_it_was_seen():
    units = {"CTRCL": "mm", "CrossMatch": "voxel", "CRLN": "voxel", "CMAformer": "", "Cross Teaching": "not known"}
    for row in ROWS:
        paper = row["source"].partition(" paper")[0]
        distances = {"hd95", "asd"} & row.keys()
        assert row["distance_unit"] == (units[paper] if distances else ""), row
        assert row["verified"] == (paper != "Cross Teaching"), row
    tables = {(row["source"], row["dataset"]) for row in ROWS}
    assert tables == {
        ("CTRCL paper, table I", "Synapse"), ("CTRCL paper, table I", "ACDC"), ("CTRCL paper, table II", "Kvasir"),
        ("CrossMatch paper, table I", "Left atrium"), ("CrossMatch paper, table II", "ACDC"),
        ("Cross Teaching paper", "ACDC"),
        ("CRLN paper, table 1", "Left atrium"), ("CRLN paper, table 2", "Left atrium"),
        ("CRLN paper, table 3", "Pancreas-CT"), ("CRLN paper, table 4", "BraTS 2019"),
        ("CMAformer paper, table I", "Synapse"), ("CMAformer paper, table II", "LiTS 2017"),
    }  # fmt: skip
