"""Time and memory of `nnunet_collab evaluate` on an abdominal volume: Dice, Jaccard, HD, HD95, ASD in mm and in voxels.

The volume has eight irregular organs. The prediction is the truth with a rough border and, for each organ, a stray
voxel far away, which makes a distance transform of the organ's bounding box slow. The time includes reading, checking
and measuring. It is divided by the time of the plain way (plain_evaluation.py) on the same files, in the same process;
both alternate. An extra class is a ball of 9 mm. Its cost is the time with eight more of them, minus the time without,
divided by eight.

    python benchmarks/metrics_time.py                      # one volume of 512 x 512 x 150 in one process
"""

from __future__ import annotations

import argparse
import json
import resource
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
from plain_evaluation import plain_evaluation
from scipy.ndimage import gaussian_filter

from nnunet_collab.evaluation.one_case import evaluate_case
from nnunet_collab.evaluation.pairing import plan_evaluation

ORGANS = ("spleen", "right kidney", "left kidney", "gallbladder", "liver", "stomach", "aorta", "pancreas")
RADII_MM = (45, 40, 40, 25, 85, 60, 18, 30)
SPACING_MM = (3.0, 0.75, 0.75)  # z, y, x


def volume(shape: tuple[int, int, int], seed: int, roughness: float) -> np.ndarray:
    """Organs as balls with lumps of `roughness` mm; the lumps depend on the seed, the balls do not."""
    places, rng = np.random.default_rng(0), np.random.default_rng(seed)
    labels = np.zeros(shape, dtype=np.uint8)
    grid = np.ogrid[tuple(slice(n) for n in shape)]
    small = rng.standard_normal([n // 4 + 1 for n in shape], dtype=np.float32)
    lumps = gaussian_filter(small, 2)
    lumps = np.kron(lumps / lumps.std(), np.ones((4, 4, 4), dtype=np.float32))[tuple(slice(n) for n in shape)]
    for number, radius in enumerate(RADII_MM, start=1):
        center = [n * s * places.uniform(0.3, 0.7) for n, s in zip(shape, SPACING_MM, strict=True)]
        r = sum((g * s - c) ** 2 for g, s, c in zip(grid, SPACING_MM, center, strict=True)) ** 0.5
        labels[r + roughness * lumps < radius] = number
        labels[tuple(rng.integers(0, n) for n in shape)] = number
    return labels


def write(folder: Path, case: str, shape: tuple[int, int, int], seed: int, roughness: float) -> None:
    """Write one volume of labels."""
    folder.mkdir(exist_ok=True)
    image = sitk.GetImageFromArray(volume(shape, seed, roughness))
    image.SetSpacing(SPACING_MM[::-1])
    sitk.WriteImage(image, str(folder / f"{case}.nii.gz"), True)


def add_small_classes(folder: Path, case: str) -> None:
    """One ball of 9 mm per organ, side by side near a corner, at slightly different places in each file."""
    path = folder / f"{case}.nii.gz"
    image = sitk.ReadImage(str(path))
    labels = sitk.GetArrayFromImage(image)
    grid = np.ogrid[tuple(slice(n) for n in labels.shape)]
    shift = 2.0 if folder.name == "predicted" else 0.0
    for extra in range(len(ORGANS)):
        center = [9.0 * 1.2, 9.0 * 1.2 + shift, 9.0 * (1.2 + 2 * extra)]
        r = sum((g * s - c) ** 2 for g, s, c in zip(grid, SPACING_MM, center, strict=True)) ** 0.5
        labels[r < 9.0] = len(ORGANS) + 1 + extra
    small = sitk.GetImageFromArray(labels)
    small.CopyInformation(image)
    sitk.WriteImage(small, str(path.with_name(f"{case}_more.nii.gz")), True)


def timed(work: Callable[[], Any]) -> float:
    """CPU seconds of this process: another process's load does not count."""
    began = time.process_time()
    work()
    return time.process_time() - began


def main() -> None:
    """Make the volume, evaluate it in both ways, print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", type=int, nargs=3, default=(150, 512, 512), help="z, y, x")
    parser.add_argument("--rounds", type=int, default=3, help="of which the fastest counts")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        truth, predicted = Path(name, "truth"), Path(name, "predicted")
        # In a separate process, so that its memory is not counted.
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as maker:
            maker.submit(write, truth, "case", args.shape, 0, 4.0).result()
            maker.submit(write, predicted, "case", args.shape, 1, 5.0).result()
            for folder in (truth, predicted):
                maker.submit(add_small_classes, folder, "case").result()
        names = [*ORGANS, *(f"ball {n}" for n in range(1, 1 + len(ORGANS)))]
        ways: dict[str, Callable[[], Any]] = {}
        for case, count in (("case", len(ORGANS)), ("case_more", len(names))):
            facts = {"background": 0, **{n: i for i, n in enumerate(names[:count], start=1)}}
            (truth / "dataset.json").write_text(json.dumps({"labels": facts, "file_ending": ".nii.gz"}))
            plan = plan_evaluation(predicted, truth)
            files = (predicted / f"{case}.nii.gz", truth / f"{case}.nii.gz")
            ways[f"package, {count} classes"] = partial(evaluate_case, plan, case)
            ways[f"plain, {count} classes"] = partial(plain_evaluation, *files, plan.reader, plan.classes)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        result = evaluate_case(plan, "case")
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        seconds = {way: min(times) for way, times in _in_turn(ways, args.rounds).items()}
    assert result.problems == []
    for way, value in seconds.items():
        print(f"{way}: {value:.2f} s of CPU")
    few, many = len(ORGANS), len(names)
    extra = {w: (seconds[f"{w}, {many} classes"] - seconds[f"{w}, {few} classes"]) / few for w in ("package", "plain")}
    print(f"an extra small class: {extra['package']:.3f} s, plain {extra['plain']:.3f} s")
    print(f"peak memory: {peak / 1e6:.2f} GB, of which {before / 1e6:.2f} GB after the imports")
    ratio = seconds[f"package, {few} classes"] / seconds[f"plain, {few} classes"]
    print(f"evaluate of {few} organs / plain way = {ratio:.3f}")
    print(f"an extra small class / plain way = {extra['package'] / extra['plain']:.3f}")


def _in_turn(ways: dict[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each round of each way; the ways take turns."""
    times: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(rounds):
        for way, work in ways.items():
            times[way].append(timed(work))
    return times


if __name__ == "__main__":
    main()
