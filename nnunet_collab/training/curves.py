"""Curves of a run: keys in nnU-Net's logger, a summary of each epoch, and one figure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch

from nnunet_collab.core.distributed import world_size
from nnunet_collab.core.files import write_json
from nnunet_collab.figures.learning_curves import learning_curves_figure
from nnunet_collab.training.metrics import dice

# The pseudo-label curves that are drawn; the shares of the classes are only in the log.
PSEUDO_LABELS = {"pseudo_used": "share used", "pseudo_entropy": "entropy", "pseudo_quality": "Dice of those used"}


class Curves:
    """Adds keys to nnU-Net's logger, which accepts only its own keys, and draws the curves.

    Args:
        logger: nnU-Net's `MetaLogger`; it also feeds W&B.
        start: Epoch from which more than the labels counts, in fractions; None where nothing starts later.
    """

    def __init__(self, logger: Any, start: float | None = None) -> None:
        self.logger = logger
        self.start = start

    @property
    def values(self) -> dict[str, list[Any]]:
        """All curves, with one value per epoch."""
        values: dict[str, list[Any]] = self.logger.local_logger.my_fantastic_logging
        return values

    def log(self, key: str, value: Any, epoch: int) -> None:
        """Append the value of this epoch, once per key and epoch. Earlier epochs without a value become NaN."""
        values = self.values.setdefault(key, [])
        values.extend([np.nan] * (epoch - len(values)))
        self.logger.log(key, value, epoch)

    def log_training(self, outputs: Sequence[Mapping[str, Any]], epoch: int) -> None:
        """Append the means of the total loss and of every weighted term. Skipped iterations count only for the weights.

        Args:
            outputs: What `train_step` returned: `loss`, and `terms` and `weights` by name. A term may be absent in
                some iterations; its mean is over the iterations that have it.
            epoch: Number of the epoch.
        """
        used = [output for output in outputs if np.isfinite(output["loss"])]
        self.log("train_losses", np.mean([o["loss"] for o in used]) if used else np.nan, epoch)
        for key in dict.fromkeys(key for output in outputs for key in output["terms"]):
            values = [o["terms"][key] for o in used if key in o["terms"]]
            self.log(f"loss/{key}", float(np.mean(values)) if values else float("nan"), epoch)
            self.log(
                f"weight/{key}", float(np.mean([o["weights"][key] for o in outputs if key in o["weights"]])), epoch
            )

    def log_validation(self, outputs: Sequence[Mapping[str, Any]], learners: Sequence[str], epoch: int) -> None:
        """Append the pseudo Dice of every student, the mean of the students that learn, and the agreement.

        Args:
            outputs: What `validation_step` returned: `loss`, and the counts from which Dice is computed.
            learners: Names of the students that learn.
            epoch: Number of the epoch.
        """
        per_class = {name: dice(sum(o["counts"][name] for o in outputs)) for name in outputs[0]["counts"]}
        for name, values in per_class.items():
            self.log(f"pseudo_dice/{name}", float(np.nanmean(values)), epoch)
        mean = np.nanmean(np.stack([per_class[name] for name in learners]), axis=0)
        self.log("mean_fg_dice", float(np.nanmean(mean)), epoch)
        self.log("dice_per_class_or_region", mean.tolist(), epoch)
        self.log("val_losses", float(np.mean([o["loss"] for o in outputs])), epoch)
        if outputs[0]["agreement"] is not None:
            self.log("agreement", float(np.nanmean(dice(sum(o["agreement"] for o in outputs)))), epoch)

    def log_variables(self, values: Mapping[str, float], epoch: int) -> None:
        """Append values that a method learns besides the networks, by name; `group/name` is drawn with its group."""
        for name, value in values.items():
            self.log(f"variable/{name}", value, epoch)

    def family(self, prefix: str) -> dict[str, list[float]]:
        """Curves whose key is `prefix/...`, by the rest of the key."""
        return {k.removeprefix(f"{prefix}/"): v for k, v in self.values.items() if k.startswith(f"{prefix}/")}

    def summary(self) -> list[str]:
        """The last epoch in a few lines. Curves without a value for it are left out."""
        epochs = self.epochs
        last = {key: values[-1] for key, values in self.values.items() if len(values) == epochs}

        def listed(prefix: str) -> dict[str, str]:
            return {
                key.removeprefix(f"{prefix}/"): f"{value:.4f}"
                for key, value in last.items()
                if key.startswith(f"{prefix}/")
            }

        dice, terms = listed("pseudo_dice"), listed("loss")
        lines = [
            f"train loss {last['train_losses']:.4f}, validation loss {last['val_losses']:.4f}",
            f"weighted terms: {_listing(terms)}",
            f"pseudo Dice: {_listing(dice)}, per class {np.round(last['dice_per_class_or_region'], 4).tolist()}",
        ]
        for key, name in PSEUDO_LABELS.items():
            if of_students := listed(key):
                lines.append(f"pseudo labels, {name}: {_listing(of_students)}")
        if "agreement" in last:
            lines.append(f"agreement of the students: {last['agreement']:.4f}")
        seconds = last["epoch_end_timestamps"] - last["epoch_start_timestamps"]
        return [*lines, f"epoch time: {seconds:.2f} s"]

    @property
    def epochs(self) -> int:
        """Number of completed epochs."""
        return len(self.values.get("epoch_end_timestamps", []))

    def fill_gaps(self) -> None:
        """Fill the curves with NaN up to the last completed epoch: nnU-Net draws only as far as the shortest curve."""
        for values in self.values.values():
            values.extend([np.nan] * (self.epochs - len(values)))

    def as_plain(self) -> dict[str, Any]:
        """The curves in the form that `figures.learning_curves_figure` draws, and the time and memory per epoch.

        `peak_memory_bytes` is the peak memory that torch allocated on the GPU of the first process since it started;
        None without a GPU.
        """
        losses = self.family("loss")
        epochs = self.epochs
        agreement = self.values.get("agreement")
        times = zip(self.values.get("epoch_start_timestamps", []), self.values.get("epoch_end_timestamps", []))  # noqa: B905
        of_pseudo_labels = {
            f"{student}/{name}": values
            for key, name in PSEUDO_LABELS.items()
            for student, values in self.family(key).items()
        }
        return {
            "epochs": list(range(epochs)),
            "pseudo_dice": {name: values[:epochs] for name, values in self.family("pseudo_dice").items()},
            "losses": {name: values[:epochs] for name, values in losses.items()},
            "agreement": None if agreement is None else agreement[:epochs],
            "pseudo_labels": {name: values[:epochs] for name, values in of_pseudo_labels.items()},
            "variables": {name: values[:epochs] for name, values in self.family("variable").items()},
            "start": self.start,
            "seconds_per_epoch": [round(end - start, 3) for start, end in times],
            "peak_memory_bytes": torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None,
            "processes": world_size(),
        }

    def write(self, folder: Path, log: Callable[[str], None]) -> None:
        """Write the run so far as numbers (`curves.json`) and as figures (nnU-Net's and `collab_progress.png`).

        If a figure cannot be drawn, the log says so and the training continues.

        Args:
            folder: Fold folder of the training.
            log: Function that logs one line.

        Raises:
            CollabError: If the numbers cannot be written.
        """
        self.fill_gaps()
        plain = self.as_plain()
        write_json(folder / "curves.json", plain)
        figures: dict[str, Callable[[], None]] = {
            "progress.png": lambda: self.logger.plot_progress_png(str(folder)),
            "collab_progress.png": lambda: learning_curves_figure(plain, folder / "collab_progress.png"),
        }
        for name, draw in figures.items():
            try:
                draw()
            except Exception as error:  # any error: a figure must not end a training
                log(f"WARNING: {folder / name} could not be drawn ({type(error).__name__}: {error}).")
                plt.close("all")  # nnU-Net leaves its figures open: 65 MB per epoch


def _listing(values: dict[str, str]) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items())
