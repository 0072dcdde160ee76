"""Read the weights that a student can start from, in the layouts of this package, of nnU-Net and of nnssl.

All three keep their weights under `network_weights`.

- nnU-Net's checkpoint, and a published student's, hold one network.
- A run of this package holds all its students, each under `students.NAME.network.`.
- nnssl (self-supervised pretraining; the OpenMind models) adds `nnssl_adaptation_plan`. It names the prefixes of the
  encoder (`key_to_encoder`), of the first layers (`key_to_stem`) and of the positions (`key_to_lpe`), such as
  `encoder.stages` and `encoder.stem` for ResEnc-L, `eva` and `down_projection` for Primus-M. The networks of
  dynamic_network_architectures have attributes of the same names, so one prefix is replaced by the other. The last
  layers of such a file restored images, so they are left out.

No code of a file is run: `core.checkpoint.read` accepts tensors and plain values only.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor, nn

from nnunet_collab.core import checkpoint as checkpoints
from nnunet_collab.core.errors import CollabError, listed

NNSSL = "nnssl_adaptation_plan"
FINAL = "checkpoint_final.pth"
_STUDENT = re.compile(r"^students\.([^.]+)\.network\.")
_WRAPPERS = re.compile(r"^(?:module\.|_orig_mod\.)+")  # of distributed training and of torch.compile
_NNSSL_KEYS = ("key_to_encoder", "key_to_stem", "key_to_lpe")
_NNSSL_HEADS = re.compile(r"\.seg_layers\.|^up_projection\.")


class StartFile(NamedTuple):
    """A checkpoint whose weights a student can start from.

    Attributes:
        path: The file.
        kind: What wrote it, in words.
        digest: First half of the file's SHA-256, in hexadecimal digits.
        students: Weights by student; for a file of a single network one entry with the name "".
        plan: The adaptation plan of nnssl; None for other files.
    """

    path: Path
    kind: str
    digest: str
    students: Mapping[str, Mapping[str, Tensor]]
    plan: Mapping[str, Any] | None

    def of(self, student: str) -> Mapping[str, Tensor]:
        """The weights for a student: those under its name, or those of the only network.

        Raises:
            CollabError: If the file holds several students, and none of this name.
        """
        if student in self.students:
            return self.students[student]
        if len(self.students) > 1:
            raise CollabError(
                f"{self.path}: holds several students, so one of them must be called {student!r}; it holds "
                f"{', '.join(self.students)}. Rename the student, or name the fold folder of a published one."
            )
        return next(iter(self.students.values()))


def read_start_file(path: Path) -> StartFile:
    """Read a checkpoint to start from.

    Args:
        path: A checkpoint, or the fold folder that holds a `checkpoint_final.pth`.

    Raises:
        CollabError: If there is no such file; if it is damaged, would run code or holds no weights of a network; or if
            one of these weights is not finite.
    """
    if path.is_dir() and not (path / FINAL).is_file():
        found = sorted(entry.name for entry in path.iterdir())
        raise CollabError(
            f"{path}: must be a checkpoint, or a fold folder with a {FINAL}; the folder holds "
            f"{listed(found) or 'nothing'}. Name one of its files, or the folder fold_X."
        )
    path = path / FINAL if path.is_dir() else path
    content = checkpoints.read(path)
    weights = content.get("network_weights")
    if not isinstance(weights, Mapping) or not weights or not all(map(_is_weight, weights.items())):
        raise CollabError(
            f"{path}: must be a checkpoint of nnU-Net, of this package or of nnssl, with the weights under "
            f"'network_weights'; it holds {listed(sorted(map(str, content))) or 'nothing'}. Name another file."
        )
    checkpoints.require_finite(f"{path}", weights)
    plan = content.get(NNSSL)
    if plan is not None and not isinstance(plan, Mapping):
        raise CollabError(f"{path}: {NNSSL!r} must be a dictionary; it is a {type(plan).__name__}. Name another file.")
    ours = isinstance(content.get(checkpoints.KEY), Mapping)
    kind = str(content.get("trainer_name", "nnU-Net"))
    if plan is not None:
        kind = "nnssl, without the layers that restore images"
    elif ours:
        kind = str(content[checkpoints.KEY].get("trained_by", kind))
    return StartFile(path, kind, _digest(path), _by_student(weights), plan)


def weights_for(file: StartFile, student: str, network: nn.Module) -> dict[str, Tensor]:
    """The weights of the file for this student, under the names that its network would give them.

    Raises:
        CollabError: If the file holds several students and none of this name; or if it is of nnssl, and its plan is not
            complete or the network is not one that nnssl pretrains.
    """
    weights = file.of(student)
    if file.plan is None:
        return dict(weights)
    theirs = {key: file.plan.get(key) for key in _NNSSL_KEYS}
    ours = {key: getattr(network, key, None) for key in _NNSSL_KEYS}
    if missing := [key for key in _NNSSL_KEYS[:2] if not isinstance(theirs[key], str)]:
        raise CollabError(
            f"{file.path}: the {NNSSL!r} of nnssl's checkpoints must name the encoder's weights; it lacks "
            f"{', '.join(missing)}. Name another file."
        )
    if not all(isinstance(ours[key], str) for key in _NNSSL_KEYS[:2]):
        raise CollabError(
            f"{file.path}: nnssl pretrains networks of dynamic_network_architectures, such as ResidualEncoderUNet "
            f"and Primus; student {student!r} is a {type(network).__name__}. Plan a ResEnc-L, or choose primus_m."
        )
    prefixes = [(str(theirs[k]), str(ours[k])) for k in _NNSSL_KEYS if theirs[k] is not None and ours[k] is not None]
    renamed, others = {}, {}
    for name, weight in weights.items():
        # The longest prefix first: a stem or the positions may lie inside of the encoder.
        for their_prefix, our_prefix in sorted(prefixes, key=lambda pair: -len(pair[0])):
            if name == their_prefix or name.startswith(f"{their_prefix}."):
                renamed[our_prefix + name[len(their_prefix) :]] = weight
                break
        else:
            if not _NNSSL_HEADS.search(name):
                others[name] = weight
    return {**others, **renamed}


def _is_weight(item: tuple[object, object]) -> bool:
    return isinstance(item[0], str) and isinstance(item[1], Tensor)


def _by_student(weights: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    students: dict[str, dict[str, Tensor]] = {}
    for name, weight in weights.items():
        match = _STUDENT.match(name)
        student, inner = (match[1], name[match.end() :]) if match else ("", name)
        students.setdefault(student, {})[_WRAPPERS.sub("", inner)] = weight
    return students


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()[:32]
