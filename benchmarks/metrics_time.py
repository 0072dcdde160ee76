"""Time and memory of `nnunet_collab evaluate` on abdominal volumes: Dice, Jaccard, HD, HD95, ASD in mm and in voxels.

Each volume holds eight lumpy organs; the prediction is the truth with a rough border and, in each organ, a stray voxel
far away, which a distance transform of the organs' boxes would pay for. Reading, checking and measuring are all timed.

    python benchmarks/metrics_time.py                      # one volume of 512 x 512 x 150 in one process
    python benchmarks/metrics_time.py --cases 2 -np 2      # one per core
"""

from __future__ import annotations

import argparse
import json
import resource
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from scipy.ndimage import gaussian_filter

from nnunet_collab.evaluation.folders import evaluate_folders

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


def main() -> None:
    """Make the volumes, evaluate them, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", type=int, nargs=3, default=(150, 512, 512), help="z, y, x")
    parser.add_argument("--cases", type=int, default=1)
    parser.add_argument("-np", type=int, default=1, help="worker processes")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        truth, predicted = Path(name, "truth"), Path(name, "predicted")
        # In a process of its own, so that its memory is not counted.
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as maker:
            for case in range(args.cases):
                maker.submit(write, truth, f"case{case}", args.shape, 0, 4.0).result()
                maker.submit(write, predicted, f"case{case}", args.shape, 1 + case, 5.0).result()
        facts = {"labels": {"background": 0, **{n: i for i, n in enumerate(ORGANS, start=1)}}, "file_ending": ".nii.gz"}
        (truth / "dataset.json").write_text(json.dumps(facts))
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        began, cpu = time.perf_counter(), time.process_time()
        frame = evaluate_folders(predicted, truth, processes=args.np)
        seconds, cpu_seconds = time.perf_counter() - began, time.process_time() - cpu
        after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(frame.drop(columns=["missed", "false_positive", "both_empty"]).round(3).to_string(index=False))
    print(f"\n{args.cases} volume(s) of {args.shape}, {len(ORGANS)} organs, {args.np} process(es): {seconds:.1f} s")
    if args.np == 1:
        print(f"CPU time of the process: {cpu_seconds:.1f} s")
        print(f"peak memory: {after / 1e6:.2f} GB, of which {before / 1e6:.2f} GB after the imports")


if __name__ == "__main__":
    main()
