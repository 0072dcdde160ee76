"""How time and memory grow with the number of classes, the batch, the patch, the unlabeled images, and the results.

Each part gives a table with the exponent of growth: the slope of log(seconds) or log(bytes) over log(size), between
the two largest sizes. Bar: at most 1, linear; the time may exceed it by 0.15, its noise. Seconds are those of the
processor alone, so use one thread on a machine with other work.

    python benchmarks/scaling.py --threads 1                               all parts
    python benchmarks/scaling.py --threads 1 --parts cases report          some of them
"""

from __future__ import annotations

import argparse
import contextlib
import io
import math
import shutil
import statistics
import tempfile
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import harness
import numpy as np
import torch
from loss_memory import peak_of_step
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2
from scaling_results import write_predictions

from nnunet_collab.commands import report
from nnunet_collab.data.two_streams import RandomCrops
from nnunet_collab.data.unlabeled_dataset import UnlabeledDataset
from nnunet_collab.data.unlabeled_preprocessing import complete_cases
from nnunet_collab.training.case_files import check_unlabeled_images

LINEAR, NOISE = 1.0, 0.15
# Sizes of each part; with --toy, only to check that it runs.
SIZES: dict[str, list[int]] = {
    "classes": [2, 4, 9, 32, 105],
    "batch": [2, 4, 8, 16],
    "patch": [64, 128, 256],
    "cases": [10, 100, 1000, 10_000],
    "folders": [5, 10, 20],
    "report": [50, 100, 200],
}
TOY = {"classes": [2, 4], "batch": [1, 2], "patch": [64, 128], "cases": [2, 4], "folders": [2, 3], "report": [4, 8]}
FOLDERS, CASES = 20, 200  # of results, and cases in each, while the other number grows
CROPS = 8  # unlabeled crops of a batch


def main() -> None:
    """Measure and print a table per part."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--parts", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--rounds", type=int, default=3, help="measurements of each size")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="CPU threads")
    parser.add_argument("--toy", action="store_true", help="tiny sizes, only to check that it runs")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    print(harness.hardware("cpu", args.threads))
    measures = {part: _step_of(part, args) for part in ("classes", "batch", "patch")}
    measures |= {"cases": _unlabeled_cases}
    measures |= {"folders": lambda n: _report(n, 4 if args.toy else CASES, args.rounds)}
    measures |= {"report": lambda n: _report(2 if args.toy else FOLDERS, n, args.rounds)}
    for part in args.parts:
        sizes = (TOY if args.toy else SIZES)[part]
        _print(part, sizes, [measures[part](size) for size in sizes])


def _print(part: str, sizes: list[int], rows: list[dict[str, float]]) -> None:
    """The table of a part, its exponents below."""
    of_size = [size**2 if part == "patch" else size for size in sizes]  # a patch is a square
    print(f"{part:>12}" + "".join(f"{name:>24}" for name in rows[0]))
    for size, row in zip(sizes, rows, strict=True):
        print(f"{size:12}" + "".join(f"{value:24.4g}" for value in row.values()))
    for name in rows[0]:
        before, after = rows[-2][name], rows[-1][name]
        grown = math.log(after / before) / math.log(of_size[-1] / of_size[-2]) if min(before, after) > 0 else 0.0
        bar = LINEAR + (NOISE if name.endswith(" s") else 0.01)
        print(
            f"{part}, {name}: exponent = {grown:.2f}, bar {LINEAR:.2f}: {'met' if grown <= bar else 'MISSED'}",
            flush=True,
        )


def _step_of(part: str, args: argparse.Namespace) -> Callable[[int], dict[str, float]]:
    """Measures CTRCL's step on small networks, with one of classes, batch and patch changed."""

    def measure(size: int) -> dict[str, float]:
        scale = "smoke" if args.toy else "2d_tiny"
        changed = dict(harness.SCALES[scale])
        if part == "batch":
            changed["batch"] = size
        elif part == "patch":
            changed |= {"patch": (size, size), "batch": 2}
        harness.SCALES["scaling"] = changed
        classes = size if part == "classes" else harness.CLASSES
        options: Any = argparse.Namespace(
            scale="scaling", classes=classes, device="cpu", transformer="segformer_b0", compile=False
        )
        trainer = harness.make_trainer(options, harness.pair_settings(options))
        batch = harness.make_batch(options)
        trainer.train_step(batch)  # the optimizers' state is made in the first step
        peak = peak_of_step(trainer, batch)
        return {"step, s": _seconds(lambda: trainer.train_step(batch), args.rounds), "peak, MiB": peak / 2**20}

    return measure


def _unlabeled_cases(count: int) -> dict[str, float]:
    """What a training does with the names of its unlabeled images before the first batch, and drawing a batch."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shape = (1, 1, 32, 32)
        nnUNetDatasetBlosc2.save_case(np.zeros(shape, np.float32), np.zeros(shape, np.int16), {}, str(folder / "case0"))
        endings = [file.name.removeprefix("case0") for file in folder.iterdir()]
        for number in range(1, count):
            for ending in endings:
                shutil.copyfile(folder / f"case0{ending}", folder / f"case{number}{ending}")

        def start() -> UnlabeledDataset:
            folders = dict.fromkeys(complete_cases(folder), folder)
            check_unlabeled_images(folders)
            return UnlabeledDataset(folders)

        seconds = _seconds(start, 1)
        tracemalloc.start()
        dataset = start()
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        labels: Any = SimpleNamespace(all_labels=[1], has_ignore_label=False)
        crops = RandomCrops(dataset, CROPS, (32, 32), (32, 32), labels, transforms=None)
        drawing = _seconds(crops.generate_train_batch, 10)
    return {"start-up, s": seconds, "memory, MiB": peak / 2**20, "batch, s": drawing}


def _report(folders: int, cases: int, rounds: int) -> dict[str, float]:
    """`nnunet_collab report` of predictions of so many methods for so many cases."""
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        paths = [write_predictions(root, number, cases) for number in range(folders)]
        arguments = argparse.ArgumentParser()
        report.add_arguments(arguments)
        given = arguments.parse_args([*map(str, paths), "-o", str(root / "report"), "--overwrite"])

        def run() -> None:
            with contextlib.redirect_stdout(io.StringIO()):
                report.run(given)

        seconds = _seconds(run, rounds)
        size = (root / "report" / "report.html").stat().st_size
    return {"report, s": seconds, "page, MiB": size / 2**20}


def _seconds(step: Callable[[], Any], rounds: int) -> float:
    """Median processor time."""
    taken = []
    for _ in range(rounds):
        start = time.process_time()
        step()
        taken.append(time.process_time() - start)
    return statistics.median(taken)


if __name__ == "__main__":
    main()
