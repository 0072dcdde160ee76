"""Checkpoints: complete, written atomically, and refused with a reason when they do not fit.

A checkpoint has nnU-Net's keys, so that nnU-Net's predictor reads it, and under `nnunet_collab` what resuming exactly
needs: the iteration, the settings and the states of all random generators. It holds tensors and plain Python values
only, so that `torch.load(..., weights_only=True)` reads it.

A checkpoint is a pickle, and a pickle can run any code when it is loaded. `read` is the only function that loads
checkpoints, and it never runs their code.
"""

from __future__ import annotations

import codecs
import random
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nnunet_collab.core.errors import CollabError, listed
from nnunet_collab.core.files import write_atomically
from nnunet_collab.core.settings import VARIABLE, differences

KEY = "nnunet_collab"
# The parts of a training's checkpoint: nnU-Net's own, and those of this package under KEY.
_NONE = type(None)
_PARTS: dict[str, tuple[type, ...]] = {
    "network_weights": (Mapping,),
    "optimizer_state": (Mapping,),
    "grad_scaler_state": (Mapping, _NONE),
    "logging": (Mapping,),
    "_best_ema": (float, _NONE),
    "current_epoch": (int,),
    "init_args": (Mapping,),
    "trainer_name": (str,),
    "inference_allowed_mirroring_axes": (list, tuple, _NONE),
}
_OUR_PARTS: dict[str, tuple[type, ...]] = {
    "settings": (Mapping,),
    "iteration": (int,),
    "random_states": (list,),
    "weights_from": (Mapping,),
    "trained_weights": (Mapping, _NONE),
    "method": (Mapping,),
    "cases": (Mapping,),
}
# nnU-Net's own checkpoints hold numpy's numbers and the device; these classes and functions only hold or make values.
# numpy 1 calls the module of the function otherwise.
_SCALAR = np.float64(0).__reduce__()[0]
_SAFE: list[Any] = [
    (_SCALAR, "numpy._core.multiarray.scalar"),
    (_SCALAR, "numpy.core.multiarray.scalar"),
    np.dtype,
    *{type(np.dtype(kind)) for kind in "?bhilqBHILQefd"},
    codecs.encode,
    torch.device,
]


def save(path: Path, checkpoint: Mapping[str, Any]) -> None:
    """Write a checkpoint. If the process is killed or the disk is full, the previous checkpoint stays intact.

    Raises:
        CollabError: If it cannot be written.
    """
    write_atomically(path, lambda temporary: torch.save(plain(checkpoint), temporary))


def read(path: Path, what: str = "checkpoint") -> dict[str, Any]:
    """Read a file of tensors and plain values onto the CPU: our checkpoints, nnU-Net's own, published weights.

    Args:
        path: A file written by `torch.save`.
        what: The role of the file, for the message.

    Raises:
        CollabError: If the file is missing or damaged, holds anything that would run code, or is not a dictionary.
    """
    if not path.is_file():
        raise CollabError(f"{what} {path}: there is no such file. Train first, or check the path.")
    try:
        _require_intact(path)
        with torch.serialization.safe_globals(_SAFE):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file can raise any exception
        reason = str(error).strip().split("\n")[0][:200] or type(error).__name__
        if foreign := _foreign_objects(path):
            raise CollabError(
                f"{what} {path}: must hold tensors and plain values; it also holds {listed(foreign)}, and loading "
                f"these would run code of the file. If you know where it comes from, rewrite it without them as "
                f"docs/troubleshooting.md says under 'A checkpoint that would run code', and name the new file."
            ) from error
        raise CollabError(
            f"{what} {path}: must be a complete file of this package; reading it failed "
            f"({reason}). It is truncated or was written by something else: "
            f"move it away and continue from another checkpoint of the folder, or train again from the start."
        ) from error
    if not isinstance(content, dict):
        raise CollabError(f"{what} {path}: must hold a dictionary; it holds a {type(content).__name__}. Name another.")
    return content


def _require_intact(path: Path) -> None:
    """Raise ValueError if a checksum of the archive does not match; torch does not check them."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if damaged := archive.testzip():
                raise ValueError(f"the checksum of {damaged} is wrong: the file was damaged after it was written")


def _foreign_objects(path: Path) -> list[str]:
    """Names of the objects in a complete file that `read` does not accept; empty for a damaged file."""
    try:
        with torch.serialization.safe_globals(_SAFE):
            return sorted(torch.serialization.get_unsafe_globals_in_checkpoint(path))
    except Exception:  # damaged, or in torch's format of before 1.6
        return []


def load(path: Path) -> dict[str, Any]:
    """Read a checkpoint of this package onto the CPU.

    Raises:
        CollabError: If it is missing, broken, or not one of this package's.
    """
    checkpoint = read(path)
    if KEY not in checkpoint:
        raise CollabError(
            f"checkpoint {path}: must have been written by a trainer of nnunet_collab; it has no {KEY!r} entry. "
            f"Another trainer wrote it. Give this training its own results folder."
        )
    return checkpoint


def load_training(path: Path) -> dict[str, Any]:
    """Read a checkpoint with all parts that a training writes.

    Raises:
        CollabError: As `load`, or if a part is missing or has another type.
    """
    checkpoint = load(path)
    ours = checkpoint[KEY]
    wrong = _wrong_parts(checkpoint, _PARTS)
    wrong += _wrong_parts(ours, _OUR_PARTS, f"{KEY}/") if isinstance(ours, Mapping) else [f"{KEY} (must be Mapping)"]
    if wrong:
        raise CollabError(
            f"checkpoint {path}: must have every part that a training writes; these are missing or of another type: "
            f"{listed(wrong)}. The file was changed. Continue from another checkpoint of the folder, or train again "
            f"from the start."
        )
    return checkpoint


def require_finite_weights(path: Path, checkpoint: Mapping[str, Any]) -> None:
    """Raise if a training cannot be continued or published from what `load_training` read.

    Raises:
        CollabError: If a weight, or what an optimizer or a method keeps beside the weights, is not finite.
    """
    parts = {name: checkpoint[name] for name in ("network_weights", "optimizer_state")}
    ours = {name: checkpoint[KEY][name] for name in ("trained_weights", "method")}
    require_finite(f"checkpoint {path}", {**parts, **ours})


def _wrong_parts(content: Mapping[str, Any], parts: Mapping[str, tuple[type, ...]], prefix: str = "") -> list[str]:
    return [
        f"{prefix}{name} (must be {' or '.join(t.__name__ for t in types)})"
        for name, types in parts.items()
        if name not in content or not isinstance(content[name], types)
    ]


def require_finite(where: str, content: Any) -> None:
    """Raise if a tensor holds NaN or infinity.

    Args:
        where: What holds the tensors; it starts the message.
        content: Nested dictionaries and lists. Only tensors of floating-point numbers are checked.

    Raises:
        CollabError: If a tensor holds NaN or infinity; the message names these tensors.
    """
    wrong = [name for name, tensor in _tensors(content) if tensor.is_floating_point() and not tensor.isfinite().all()]
    if wrong:
        raise CollabError(
            f"{where}: weights must be finite numbers; {len(wrong)} tensors hold NaN or infinity: {listed(wrong)}. "
            f"Continue from an earlier checkpoint, or train again with a lower learning rate."
        )


def _tensors(content: Any, name: str = "") -> Iterator[tuple[str, torch.Tensor]]:
    """All tensors in a nested value, each with its path."""
    if isinstance(content, torch.Tensor):
        yield name, content
    elif isinstance(content, (Mapping, list, tuple)):
        items = content.items() if isinstance(content, Mapping) else enumerate(content)
        for key, value in items:
            yield from _tensors(value, f"{name}/{key}" if name else str(key))


def check_fits(path: Path, checkpoint: Mapping[str, Any], trainer_name: str, settings: Mapping[str, Any]) -> None:
    """Raise unless the checkpoint belongs to this trainer with these settings.

    Raises:
        CollabError: If the trainer or a setting differs; the message names the trainer or every such setting.
    """
    if checkpoint["trainer_name"] != trainer_name:
        raise CollabError(
            f"checkpoint {path}: must have been written by {trainer_name}, which runs now; "
            f"{checkpoint['trainer_name']} wrote it. Use that trainer, or another results folder."
        )
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
    """Restore the states that `random_states` returned. GPU states are skipped if the number of GPUs has changed."""
    version, internal, gauss = states["python"]
    random.setstate((version, tuple(internal), gauss))
    keys, position, has_gauss, cached = states["numpy"]
    np.random.set_state(("MT19937", keys.numpy().astype(np.uint32), position, has_gauss, cached))  # noqa: NPY002
    torch.set_rng_state(states["torch"])
    if torch.cuda.is_available() and len(states["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(states["cuda"])


def plain(value: Any) -> Any:
    """The same content in types that `weights_only` loading accepts, e.g. Python numbers for numpy scalars."""
    if isinstance(value, Mapping):
        return {plain(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(plain(item) for item in value)
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return torch.from_numpy(value)
    return str(value) if isinstance(value, (torch.device, Path)) else value
