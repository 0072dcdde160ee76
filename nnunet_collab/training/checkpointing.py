"""Write checkpoints and resume from them. Every part is checked before it is used."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from nnunet_collab.core import checkpoint as checkpoints
from nnunet_collab.core.distributed import world_size
from nnunet_collab.core.errors import CollabError
from nnunet_collab.core.settings import to_json

KEY = checkpoints.KEY


def assemble(trainer: Any, random_states: list[dict[str, Any]]) -> dict[str, Any]:
    """Everything that prediction and an exact resume need.

    Args:
        trainer: A `CollabTrainer`.
        random_states: States of the random generators, one entry per rank.
    """
    return {
        "network_weights": published_weights(trainer),
        "optimizer_state": trainer.optimizers.state_dict(),
        "grad_scaler_state": trainer.grad_scaler.state_dict() if trainer.grad_scaler is not None else None,
        "logging": trainer.logger.get_checkpoint(),
        "_best_ema": trainer._best_ema,
        "current_epoch": trainer.current_epoch + 1,
        "init_args": trainer.my_init_kwargs,
        "trainer_name": trainer.trainer_name,
        "inference_allowed_mirroring_axes": trainer.inference_allowed_mirroring_axes,
        KEY: {
            "settings": to_json(trainer.settings),
            "iteration": trainer.iteration,
            "random_states": random_states,
            "weights_from": {student.name: student.origin for student in trainer.group},
            "trained_weights": _trained_weights(trainer),
            "method": trainer.method_state(),
            "cases": trainer.case_roles.cases,
        },
    }


def save(trainer: Any, path: Path, random_states: list[dict[str, Any]]) -> None:
    """Write a checkpoint. Refuse if a weight is not finite or another training has taken over the folder.

    Raises:
        CollabError: In these two cases, or if it cannot be written. The previous file is then unchanged.
    """
    content = assemble(trainer, random_states)
    ours = content[KEY]
    weights = {"network_weights": content["network_weights"], "trained_weights": ours["trained_weights"]}
    checkpoints.require_finite(f"{path}: not written", {**weights, "method": ours["method"]})
    trainer.results.check()
    checkpoints.save(path, content)


def published_weights(trainer: Any) -> dict[str, Tensor]:
    """Weights of the deployed networks alone, without heads, as nnU-Net's predictor loads them."""
    heads = tuple(f"students.{student.name}.heads." for student in trainer.group)
    return {name: weight for name, weight in trainer.deployed.state_dict().items() if not name.startswith(heads)}


def _trained_weights(trainer: Any) -> dict[str, Tensor] | None:
    """Weights of everything that is trained, if that is more than what is published."""
    more = trainer.deployed is not trainer.group or any(len(student.heads) for student in trainer.group)
    return trainer.group.state_dict() if more else None


def restore(trainer: Any, path: Path) -> dict[str, Any] | None:
    """Restore an initialized trainer to the state in which the checkpoint was written.

    Returns:
        The states of this rank's random generators, to be restored when the training starts. None if the number of
        processes has changed: no rank can then continue its random sequence, but the seed still determines the batches.

    Raises:
        CollabError: If the file is damaged, or was written by another trainer or with other settings; or a part of
            it does not fit the networks and optimizers of these settings.
    """
    checkpoint = checkpoints.load_training(path)
    checkpoints.require_finite_weights(path, checkpoint)
    checkpoints.check_fits(path, checkpoint, trainer.trainer_name, to_json(trainer.settings))
    ours = checkpoint[KEY]
    if not trainer.was_initialized:
        trainer.weights_from = ours["weights_from"]  # no file is loaded: it may have changed, or be gone
        trainer.initialize()
    states = ours["random_states"]
    mine = states[trainer.rank] if len(states) == world_size() else None
    scaler, scaler_state = trainer.grad_scaler, checkpoint["grad_scaler_state"]

    def weights() -> None:
        _same_shapes(published_weights(trainer), checkpoint["network_weights"], strict=True)
        trainer.group.load_state_dict(ours["trained_weights"] or checkpoint["network_weights"])

    def method() -> None:
        _same_shapes(trainer.method_state(), ours["method"])
        trainer.load_method_state(ours["method"])

    steps: dict[str, Callable[[], object]] = {
        "network_weights and trained_weights": weights,
        "method": method,
        "optimizer_state": lambda: _load_optimizers(trainer.optimizers, checkpoint["optimizer_state"]),
        "grad_scaler_state": lambda: scaler and scaler_state is not None and scaler.load_state_dict(scaler_state),
        "random_states": lambda: _try_random_states(mine),
        "logging": lambda: _load_curves(trainer.logger, checkpoint["logging"]),
        "cases": lambda: _check_cases(ours["cases"]),
    }
    for part, step in steps.items():
        try:
            step()
        except (KeyError, IndexError, ValueError, TypeError, AttributeError, RuntimeError) as error:
            reason = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
            raise CollabError(
                f"checkpoint {path}: its part {part!r} must fit the networks and settings of this training; it does "
                f"not ({reason}). The file was changed or comes from another version. Continue from another checkpoint "
                f"of the folder, or start a new training."
            ) from error
    trainer.case_roles.cases = ours["cases"]
    trainer._best_ema = checkpoint["_best_ema"]
    trainer.current_epoch = checkpoint["current_epoch"]
    trainer.inference_allowed_mirroring_axes = checkpoint["inference_allowed_mirroring_axes"]
    trainer.iteration = ours["iteration"]
    return mine


def _load_optimizers(optimizers: Any, state: Mapping[str, Any]) -> None:
    """Load the optimizers' states. Torch compares the number of parameters, but not the shapes of their states."""
    optimizers.load_state_dict(state)
    for name, optimizer in optimizers.optimizers.items():
        kept = list(optimizer.state.items())
        for parameter, values in kept:
            if values.keys() != kept[0][1].keys():
                raise ValueError(f"{name}: {sorted(kept[0][1])} for one parameter, {sorted(values)} for another")
            for key, value in values.items():
                if isinstance(value, Tensor) and value.ndim > 0 and value.shape != parameter.shape:
                    raise ValueError(
                        f"{name}: {key} {tuple(value.shape)} for a parameter of shape {tuple(parameter.shape)}"
                    )


def _same_shapes(ours: Any, theirs: Any, name: str = "", *, strict: bool = False) -> None:
    """Raise ValueError if a nested value lacks an entry of `ours`, or if a tensor has another shape."""
    if isinstance(ours, Mapping):
        if not isinstance(theirs, Mapping):
            raise ValueError(f"{name or 'it'} must be a dictionary")
        missing, more = sorted(map(str, ours.keys() - theirs.keys())), sorted(map(str, theirs.keys() - ours.keys()))
        if missing or (strict and more):
            raise ValueError(f"{name} lacks {missing[:3]}; unexpected: {more[:3] if strict else []}")
        for key, value in ours.items():
            _same_shapes(value, theirs[key], f"{name}/{key}" if name else str(key))
    elif isinstance(ours, Tensor) and (not isinstance(theirs, Tensor) or theirs.shape != ours.shape):
        found = tuple(theirs.shape) if isinstance(theirs, Tensor) else type(theirs).__name__
        raise ValueError(f"{name} must be {tuple(ours.shape)}; got {found}")


def _try_random_states(states: Mapping[str, Any] | None) -> None:
    if states is None:
        return
    before = checkpoints.random_states()
    try:
        checkpoints.restore_random_states(states)
    finally:
        checkpoints.restore_random_states(before)


def _load_curves(logger: Any, curves: Mapping[str, Any]) -> None:
    missing = sorted(logger.get_checkpoint().keys() - curves.keys())
    wrong = sorted(key for key, values in curves.items() if not isinstance(values, list))
    if missing or wrong:
        raise ValueError(f"missing curves: {missing}; not a list: {wrong}")
    logger.load_checkpoint(dict(curves))


def _check_cases(cases: Mapping[str, Any]) -> None:
    wrong = [role for role, names in cases.items() if not isinstance(names, list) or not all(map(_is_text, names))]
    if wrong:
        raise ValueError(f"not a list of names: {wrong}")


def _is_text(value: object) -> bool:
    return isinstance(value, str)
