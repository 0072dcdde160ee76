"""Checkpoints: complete, written atomically, and refused with a reason when they do not fit.

A checkpoint has nnU-Net's keys, so that nnU-Net's predictor reads it, and under `nnunet_collab` what resuming exactly
needs: the iteration, the settings and the states of all random generators. It holds tensors and plain Python values
only, so that `torch.load(..., weights_only=True)` reads it.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nnunet_collab.core.errors import CollabError
from nnunet_collab.core.files import write_atomically
from nnunet_collab.core.settings import VARIABLE, differences

KEY = "nnunet_collab"


def save(path: Path, checkpoint: Mapping[str, Any]) -> None:
    """Write a checkpoint; a kill or a full disk leaves the former one intact.

    Raises:
        CollabError: If it cannot be written.
    """
    write_atomically(path, lambda temporary: torch.save(plain(checkpoint), temporary))


def load(path: Path) -> dict[str, Any]:
    """Read a checkpoint onto the CPU.

    Raises:
        CollabError: If it is missing, broken, or not one of this package's.
    """
    if not path.is_file():
        raise CollabError(f"checkpoint {path}: there is no such file. Train first, or check the path.")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # there is no telling in which way a damaged file fails
        reason = str(error).strip().split("\n")[0][:200] or type(error).__name__
        raise CollabError(
            f"checkpoint {path}: must be a complete file of this package; reading it failed "
            f"({reason}). It is truncated or was written by something else: "
            f"move it away and continue from another checkpoint of the folder, or train anew."
        ) from error
    if not isinstance(checkpoint, dict) or KEY not in checkpoint:
        raise CollabError(
            f"checkpoint {path}: must have been written by a trainer of nnunet_collab; it has no {KEY!r} entry. "
            f"It is another trainer's: give this training a results folder of its own."
        )
    return checkpoint


def check_fits(path: Path, checkpoint: Mapping[str, Any], trainer_name: str, settings: Mapping[str, Any]) -> None:
    """Raise unless the checkpoint belongs to this trainer with these settings.

    Raises:
        CollabError: Naming the trainer or every setting that differs.
    """
    if checkpoint["trainer_name"] != trainer_name:
        raise CollabError(f"checkpoint {path}: is of trainer {checkpoint['trainer_name']}, this is {trainer_name}.")
    different = differences(settings, checkpoint[KEY]["settings"])
    if different:
        raise CollabError(
            f"checkpoint {path}: a training is continued with the settings it began with; these differ:\n  "
            + "\n  ".join(different)
            + f"\nSet {VARIABLE} as it was, or start a new training under another run_name."
        )


def random_states() -> dict[str, Any]:
    """States of Python's, numpy's and torch's generators, the GPU's included."""
    _, keys, position, has_gauss, cached = np.random.get_state()  # noqa: NPY002
    return {
        "python": random.getstate(),
        "numpy": [torch.from_numpy(np.asarray(keys).astype(np.int64)), int(position), int(has_gauss), float(cached)],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def restore_random_states(states: Mapping[str, Any]) -> None:
    """Put the generators back where `random_states` saw them; a GPU that is not there any more is left out."""
    version, internal, gauss = states["python"]
    random.setstate((version, tuple(internal), gauss))
    keys, position, has_gauss, cached = states["numpy"]
    np.random.set_state(("MT19937", keys.numpy().astype(np.uint32), position, has_gauss, cached))  # noqa: NPY002
    torch.set_rng_state(states["torch"])
    if torch.cuda.is_available() and len(states["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(states["cuda"])


def plain(value: Any) -> Any:
    """The same content in types that `weights_only` loading takes: numpy scalars and devices become Python's own."""
    if isinstance(value, Mapping):
        return {plain(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(plain(item) for item in value)
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return torch.from_numpy(value)
    return str(value) if isinstance(value, (torch.device, Path)) else value
