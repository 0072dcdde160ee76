"""Time per sample to draw a batch of labeled samples and views of unlabeled ones, compared with nnU-Net's loader.

python benchmarks/two_streams.py        draws in this process, on one core, from synthetic preprocessed cases

An unlabeled sample with a weak and a strong view counts as one sample, which may take 1.5 times as long as a labeled
one (bar 1.5). A labeled sample with LDC's signed distance maps of three classes, as the loader makes them without a
GPU, has the bar 1.3.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunet_collab.data.augmentation import without_timing
from nnunet_collab.data.loaders import seeded
from nnunet_collab.data.two_streams import RandomCrops, TwoStreams
from nnunet_collab.data.unlabeled_dataset import UnlabeledDataset
from nnunet_collab.data.views import WeakAndStrongViews
from nnunet_collab.methods.ldc.signed_distance import WithSignedDistances

BAR, DISTANCE_BAR = 1.5, 1.3
ROUNDS = 30
CASES = 8
# Name -> size of the cases, crop before augmentation, patch, batch.
SCALES: dict[str, tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...], int]] = {
    "2d": ((10, 256, 224), (304, 304), (256, 224), 12),
    "3d": ((80, 160, 160), (96, 160, 160), (64, 112, 112), 2),
}


def main() -> None:
    """Measure and print the table."""
    torch.set_num_threads(1)
    labels: Any = SimpleNamespace(all_labels=[1, 2, 3], has_ignore_label=False)
    for name, (shape, crop, patch, batch) in SCALES.items():
        with tempfile.TemporaryDirectory() as folder:
            write_cases(Path(folder), shape, patch)
            sources = make_sources(Path(folder), crop, patch, batch, labels)
            seconds: dict[str, list[float]] = {source: [] for source in sources}
            for turn in range(ROUNDS + 2):
                for source, loader in sources.items():
                    with seeded((0, turn)):  # the same random numbers for all sources
                        start = time.process_time()
                        loader.generate_train_batch()
                    if turn >= 2:
                        seconds[source].append((time.process_time() - start) / batch)
            medians = {source: statistics.mean(values) for source, values in seconds.items()}
            print(f"{name}, batch {batch} of {patch}, one core, mean over {ROUNDS} batches")
            for source, value in medians.items():
                print(f"  {source:44}{value * 1e3:8.2f} ms per sample")
            stock = medians["nnU-Net's loader, labeled only"]
            ratio = medians["two streams, weak and one strong view"] / stock
            print(f"  two streams / nnU-Net's loader = {ratio:.3f}, bar {BAR}: {'met' if ratio <= BAR else 'MISSED'}")
            ratio = medians["labeled, with signed distance maps"] / stock
            verdict = "met" if ratio <= DISTANCE_BAR else "MISSED"
            print(f"  with distance maps / nnU-Net's loader = {ratio:.3f}, bar {DISTANCE_BAR}: {verdict}")


def make_sources(
    folder: Path, crop: tuple[int, ...], patch: tuple[int, ...], batch: int, labels: Any
) -> dict[str, Any]:
    """nnU-Net's loader and ours, on the same cases."""
    rotation = (-np.pi, np.pi) if len(patch) == 2 else (-np.pi / 6, np.pi / 6)
    transforms = without_timing(
        nnUNetTrainer.get_training_transforms(
            np.array(patch), rotation, [[1.0] * len(patch), [0.5] * len(patch)], tuple(range(len(patch))), False,
            use_mask_for_norm=[False], foreground_labels=[1, 2, 3],
        )
    )  # fmt: skip
    labeled = nnUNetDatasetBlosc2(str(folder))
    unlabeled = UnlabeledDataset(dict.fromkeys(labeled.identifiers, folder))

    def stock(size: int) -> Any:
        return nnUNetDataLoader(labeled, size, crop, patch, labels, 0.33, transforms=transforms)

    def streams(strong: int) -> TwoStreams:
        views = WeakAndStrongViews(transforms, strong)
        return TwoStreams(stock(batch // 2), RandomCrops(unlabeled, batch // 2, crop, patch, labels, transforms=views))

    return {
        "nnU-Net's loader, labeled only": stock(batch),
        "labeled, with signed distance maps": WithSignedDistances(
            stock(batch), [1.0] * len(patch), classes=[1, 2, 3], regions=0
        ),
        "two streams, weak view": streams(0),
        "two streams, weak and one strong view": streams(1),
        "two streams, weak and two strong views": streams(2),
    }


def write_cases(folder: Path, shape: tuple[int, ...], patch: tuple[int, ...]) -> None:
    """Random volumes in nnU-Net's preprocessed form."""
    rng = np.random.default_rng(0)
    for number in range(CASES):
        image = rng.standard_normal((1, *shape), dtype=np.float32)
        segmentation = np.zeros((1, *shape), np.int16)
        rows, columns = np.ogrid[: shape[1], : shape[2]]
        distance = np.hypot(rows - shape[1] / 2, columns - shape[2] / 2)
        for label, radius in ((1, 40), (2, 28), (3, 16)):  # each class surrounds the next one
            segmentation[:, :, distance < radius] = label
        places = {label: np.argwhere(segmentation == label)[::50] for label in (1, 2, 3)}
        chunks = (1, *([1] if len(patch) == 2 else []), *patch)
        chunks = tuple(min(c, s) for c, s in zip(chunks, image.shape, strict=True))
        nnUNetDatasetBlosc2.save_case(
            image,
            segmentation,
            {"class_locations": places},
            str(folder / f"case{number}"),
            chunks=chunks,
            blocks=chunks,
        )


if __name__ == "__main__":
    main()
