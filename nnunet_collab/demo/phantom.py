"""A cardiac phantom: synthetic short-axis MR images with exact labels, and nnU-Net datasets made of them.

The left ventricle is a tapering, wobbly tube: blood pool inside a ring of myocardium. The right ventricle is a crescent
on that ring. Around them lie lungs, liver, stomach, aorta, chest wall and, above the base, an atrium: several are as
bright as blood or as dark as myocardium, so intensity alone cannot tell the classes apart; shape and place can.
Papillary muscles inside the left ventricle count as blood pool, as annotators of cardiac MR draw it.

Axes are (z, y, x), z from base to apex. Coordinates `u` (to the image's right), `v` (down) and `z` are mm from the centre of
the heart in the turned frame of the body; a field of view smaller than 140 mm shrinks the whole body to fit.
"""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import SimpleITK as sitk
from scipy import ndimage

from nnunet_collab.core.errors import CollabError

Floats = npt.NDArray[np.float32]
Labels = npt.NDArray[np.uint8]

RV, MYO, LV, IGNORE = 1, 2, 3, 4
_CLASSES: dict[str, Any] = {"background": 0, "RV": RV, "MYO": MYO, "LV": LV}
_REGIONS: dict[str, Any] = {"background": 0, "heart": [RV, MYO, LV], "left_heart": [MYO, LV], "LV": LV}
# The four kinds of labels that nnU-Net knows -> the entry `labels` of dataset.json.
LABELS_OF_KIND: Mapping[str, Mapping[str, Any]] = {
    "plain": _CLASSES,
    "ignore": {**_CLASSES, "ignore": IGNORE},
    "regions": _REGIONS,
    "regions_ignore": {**_REGIONS, "ignore": IGNORE},
}

# What differs between cases, uniform between two bounds. Lengths in mm, angles in rad, intensities relative to 1 = blood.
_RANGES: Mapping[str, tuple[float, float]] = {
    "turn": (-0.45, 0.45),  # of the whole body in the image
    "centre_u": (-7, 7),
    "centre_v": (-7, 7),
    "lean_u": (-0.12, 0.12),  # drift of the heart's axis, mm per mm of z
    "lean_v": (-0.12, 0.12),
    "rv_angle": (math.pi - 0.3, math.pi + 0.3),  # where the right ventricle sits on the ring
    "rv_half_angle": (1.15, 1.45),
    "rv_mm": (20, 31),  # greatest width of the right ventricle, end-diastole
    "endo_mm": (19, 26),  # radius of the left ventricle's blood pool at the base, end-diastole
    "wall_mm": (6.5, 10.5),
    "oval": (0.0, 0.10),  # amplitude of the second and third harmonic of the outline
    "lumpy": (0.0, 0.04),
    "oval_at": (0, math.pi),
    "lumpy_at": (0, math.pi),
    "wall_uneven": (0.0, 0.18),
    "length": (0.66, 0.92),  # of the heart, as a share of the stack
    "base_at": (0, 1),  # where the rest of the stack lies: 0 all below the apex, 1 all above the base
    "phase": (0, 1),  # below 0.5 towards end-diastole, above towards end-systole
    "myo": (0.28, 0.50),
    "rv_blood": (0.82, 1.08),
    "rv_contrast": (0, 1),  # below 0.12: the right ventricle's blood is nearly as dark as myocardium
    "tissue": (0.40, 0.62),
    "fat": (0.75, 1.15),
    "lung": (0.06, 0.18),
    "liver": (0.35, 0.70),
    "bias": (0.10, 0.28),  # standard deviation of the logarithm of the bias field
    "texture": (0.03, 0.07),
    "noise": (0.03, 0.07),
    "blur_px": (0.5, 0.85),
    "gain": (150, 600),  # the scanner's arbitrary unit
}
# Organs as ellipses: centre u, v and half axes u, v in mm from the heart; each is drawn a little moved and resized.
_ORGANS: Mapping[str, tuple[float, float, float, float]] = {
    "left_lung": (74, -8, 40, 58),
    "right_lung": (-62, -44, 30, 24),
    "liver": (-42, 78, 72, 36),
    "stomach": (58, 66, 21, 17),
    "aorta": (28, 60, 9, 9),
}
_FOLDER = re.compile(r"Dataset\d{3}_\w+")


def make_case(
    rng: np.random.Generator,
    *,
    shape: tuple[int, int, int],
    spacing_mm: tuple[float, float, float],
    kind: str = "plain",
) -> tuple[Floats, Labels]:
    """Draw one case. The same generator state gives the same image whatever the kind.

    Args:
        rng: Source of all randomness.
        shape: Voxels along (z, y, x), at least (1, 16, 16).
        spacing_mm: Voxel size along (z, y, x), > 0.
        kind: A key of `LABELS_OF_KIND`. With an ignore label the annotation is sparse: 60 % of the slices keep only
            scribbles (some 15 % of their voxels) and hold `IGNORE` elsewhere.

    Returns:
        Image, float32 (z, y, x), >= 0 in arbitrary units, and labels, uint8 (z, y, x): 0 background, 1 `RV`, 2 `MYO`,
        3 `LV`, 4 `IGNORE`. Kinds with regions hold the same integers, for regions are unions of them.

    Raises:
        CollabError: If the kind is unknown.
        ValueError: If the shape is too small or a spacing is not positive.
    """
    _check_kind("make_case", kind)
    if len(shape) != 3 or shape[0] < 1 or min(shape[1:]) < 16:
        raise ValueError(f"make_case: shape is (z, y, x), at least (1, 16, 16) voxels; got {shape}")
    if len(spacing_mm) != 3 or min(spacing_mm) <= 0:
        raise ValueError(f"make_case: spacing_mm is (z, y, x), each > 0; got {spacing_mm}")
    p = _draw(rng, shape[0])
    z, y, x = ((np.arange(n) - (n - 1) / 2) * d for n, d in zip(shape, spacing_mm, strict=True))
    shrink = min(1.0, shape[1] * spacing_mm[1] / 140, shape[2] * spacing_mm[2] / 140)
    axes = (z, y / shrink, x / shrink)
    labels, blood, outside_mm, u, v = _heart(p, axes, shape[0] * spacing_mm[0])
    wobble, grain, coil = (_field(waves, axes) for waves in (p.wobble, p.grain, p.coil))

    image = _body(p, u, v, wobble, grain)
    image[(outside_mm > 0) & (outside_mm < 4 + 2.5 * wobble)] = p.fat
    image[outside_mm <= 0] = p.myo
    image[labels == RV] = p.rv_blood if p.rv_contrast > 0.12 else p.myo + 0.25 * (1 - p.myo)
    image[blood] = 1
    image = ndimage.gaussian_filter(image * (1 + p.texture * grain), (0.3, p.blur_px, p.blur_px))
    image *= np.exp(p.bias * coil)
    # The magnitude of a complex signal with Gaussian noise in both channels: Rician.
    real, imaginary = p.noise * rng.standard_normal((2, *shape), dtype=np.float32)
    image = p.gain * np.hypot(image + real, imaginary)
    if "ignore" in LABELS_OF_KIND[kind]:
        labels = _scribble(rng, labels, axes)
    return image.astype(np.float32), labels


def _draw(rng: np.random.Generator, n_slices: int) -> SimpleNamespace:
    """Every random number of a case but its voxel noise and scribbles."""
    p = SimpleNamespace(**{name: rng.uniform(*bounds) for name, bounds in _RANGES.items()})
    p.slice_shift_mm = rng.normal(0, 0.7, (2, n_slices))  # breath-holds differ
    p.organs = {
        name: np.array(where) + rng.uniform(-1, 1, 4) * (6, 6, 0.15 * where[2], 0.15 * where[3])
        for name, where in _ORGANS.items()
    }
    p.wobble, p.grain, p.coil = (_draw_waves(rng, *lengths) for lengths in ((22, 60), (7, 16), (150, 320)))
    return p


def _draw_waves(rng: np.random.Generator, shortest_mm: float, longest_mm: float) -> npt.NDArray[np.float64]:
    """Sixteen plane waves: (16, 4) wave vector along (z, y, x) in rad/mm, and phase in rad."""
    towards = rng.normal(size=(16, 3))
    towards /= np.linalg.norm(towards, axis=1, keepdims=True)
    length = rng.uniform(shortest_mm, longest_mm, (16, 1))
    return np.hstack([2 * np.pi * towards / length, rng.uniform(0, 2 * np.pi, (16, 1))])


def _field(waves: npt.NDArray[np.float64], axes: tuple[npt.NDArray[np.float64], ...]) -> Floats:
    """The waves' sum on the grid (z, y, x), of unit variance over phases; smooth, roughly normal."""
    along_z, along_y, along_x = (np.exp(1j * np.outer(waves[:, i], axis)) for i, axis in enumerate(axes))
    along_z *= np.exp(1j * waves[:, 3:])
    total = np.einsum("kz,ky,kx->zyx", along_z, along_y, along_x, optimize=True).real
    return (total * math.sqrt(2 / len(waves))).astype(np.float32)


def _heart(
    p: SimpleNamespace, axes: tuple[npt.NDArray[np.float64], ...], stack_mm: float
) -> tuple[Labels, npt.NDArray[np.bool_], Floats, Floats, Floats]:
    """Labels, bright blood left of the right ventricle's, mm outside the heart's surface, and (u, v): each (z, y, x)."""
    z, y, x = axes[0][:, None, None], axes[1][None, :, None], axes[2][None, None, :]
    shift_u, shift_v = p.slice_shift_mm[..., None, None]
    # 12: the left ventricle is off the centre, so that both ventricles together are in it.
    u = (math.cos(p.turn) * x + math.sin(p.turn) * y - 12 - p.centre_u - p.lean_u * z - shift_u).astype(np.float32)
    v = (math.cos(p.turn) * y - math.sin(p.turn) * x - p.centre_v - p.lean_v * z - shift_v).astype(np.float32)
    rho, theta = np.hypot(u, v), np.arctan2(v, u)

    squeeze = 0.2 * p.phase if p.phase < 0.5 else 0.6 + 0.4 * p.phase
    length = p.length * min(stack_mm, 95) * (1 - 0.1 * squeeze)
    depth = (z + stack_mm / 2 - p.base_at * (stack_mm - length)) / length  # 0 at the base, 1 at the apex
    here = (depth >= 0) & (depth <= 1)
    t = depth.clip(0, 1)
    endo_0 = p.endo_mm * (1 - 0.32 * squeeze)
    # Muscle does not shrink: the ring keeps its area while the cavity contracts, so the wall thickens.
    wall_0 = math.sqrt(endo_0**2 + (p.endo_mm + p.wall_mm) ** 2 - p.endo_mm**2) - endo_0
    endo = endo_0 * np.sqrt((1 - (t / 0.96) ** 2.5).clip(0))
    wall = wall_0 * (1 - 0.3 * t)
    outline = 1 + p.oval * np.cos(2 * (theta - p.oval_at)) + p.lumpy * np.cos(3 * (theta - p.lumpy_at))
    epi = (endo + wall) * outline
    in_epi = here & (rho < epi)
    # Eroded, so that no voxel of the pool touches anything but pool and wall, however coarse the grid.
    pool = (rho < endo * outline + p.wall_uneven * wall * np.cos(theta - p.oval_at)) & (endo > 0)
    pool &= ndimage.binary_erosion(in_epi, np.ones((1, 3, 3)))
    off_axis = np.abs((theta - p.rv_angle + np.pi) % (2 * np.pi) - np.pi) / (p.rv_half_angle * (1 - 0.25 * t))
    width = p.rv_mm * (1 - 0.25 * squeeze) * (1 - (t / 0.85) ** 1.6)
    crescent = np.where(width > 5, width, 0) * np.cos(off_axis.clip(0, 1) * np.pi / 2) ** 0.7
    right = here & ~in_epi & (rho < epi + crescent)
    parts, n_parts = ndimage.label(right)
    if n_parts > 1:  # single voxels at the crescent's thin tips
        right = parts == 1 + np.bincount(parts.ravel())[1:].argmax()
    labels = np.select([pool, in_epi, right], [LV, MYO, RV]).astype(np.uint8)

    surface = np.where(here, epi + np.where(crescent > 0, crescent + 2.5, 0), 0.9 * epi)
    outside_mm = np.where(depth <= 1, rho - surface, np.inf).astype(np.float32)
    blood = pool | ((depth < 0) & (outside_mm < -2))  # above the base: an atrium with its thin wall, not labelled
    for side in (2.0, -2.1):  # papillary muscles
        at_u, at_v = 0.66 * endo * math.cos(p.rv_angle + side), 0.66 * endo * math.sin(p.rv_angle + side)
        blood &= (np.hypot(u - at_u, v - at_v) > 0.16 * endo) | (np.abs(depth - 0.45) > 0.3)
    return labels, blood, outside_mm, u, v


def _body(p: SimpleNamespace, u: Floats, v: Floats, wobble: Floats, grain: Floats) -> Floats:
    """What is around the heart, without bias and noise: float32 (z, y, x)."""

    def inside(organ: str, shrink_mm: float = 0) -> npt.NDArray[np.bool_]:
        at_u, at_v, half_u, half_v = p.organs[organ]
        radius = np.hypot((u - at_u) / (half_u - shrink_mm), (v - at_v) / (half_v - shrink_mm))
        return np.asarray(radius < 1 + 0.12 * wobble)

    image = (p.tissue * (1 + 0.15 * wobble)).astype(np.float32)
    lung = inside("left_lung") | inside("right_lung")
    image[lung] = p.lung
    image[lung & (grain > 1.5)] = 0.7  # vessels
    liver = inside("liver")
    image[liver] = p.liver
    image[liver & (grain > 1.7)] = 0.95
    image[inside("stomach")] = p.myo  # a ring around bright content, like a left ventricle, but with no right one
    image[inside("stomach", shrink_mm=5)] = 0.95
    image[inside("aorta", shrink_mm=-1.5)] = p.myo
    image[inside("aorta")] = 1
    # The chest's outline, 1 at the skin; going in: fat, ribs with muscle between them.
    chest = np.hypot((u + 5) / 120, (v - 35) / 105) * (1 + 0.01 * wobble)
    rib = np.cos(16 * np.arctan2(v - 35, u + 5)) > 0.2
    image[chest > 0.82] = 0.35
    image[(chest > 0.84) & rib] = 0.75
    image[chest > 0.91] = p.fat
    image[chest > 1] = 0.02
    return image


def _scribble(rng: np.random.Generator, labels: Labels, axes: tuple[npt.NDArray[np.float64], ...]) -> Labels:
    """Keep only thin winding lines of the labels in 60 % of the slices; one slice at least is left whole if there are two."""
    n_slices = len(labels)
    n_sparse = max(1, min(n_slices - 1, round(0.6 * n_slices)))
    sparse = np.isin(np.arange(n_slices), rng.permutation(n_slices)[:n_sparse])
    line = np.abs(_field(_draw_waves(rng, 14, 26), axes)) < 0.18
    return np.where(sparse[:, None, None] & ~line, np.uint8(IGNORE), labels)


def write_dataset(
    folder: Path,
    *,
    n_train: int,
    n_test: int,
    seed: int,
    shape: tuple[int, int, int] = (8, 96, 96),
    spacing_mm: tuple[float, float, float] = (8.0, 1.5, 1.5),
    kind: str = "plain",
    n_unlabeled: int = 0,
) -> None:
    """Write an nnU-Net raw dataset of phantoms: images as NIfTI with true geometry, labels, dataset.json.

    A case depends on the seed, its role and its number only: more cases leave the others as they are. Test labels (in
    `labelsTs`) are complete in every kind. The folder appears whole, or not at all.

    Args:
        folder: To be made; named `DatasetXXX_Name` with three digits.
        n_train: Cases in imagesTr and labelsTr, >= 1.
        n_test: Cases in imagesTs and labelsTs, >= 0.
        seed: >= 0.
        shape: Typical voxels along (z, y, x); cases differ from it by one slice and 6 % in the plane.
        spacing_mm: Typical voxel size along (z, y, x); cases differ from it by 4 %.
        kind: A key of `LABELS_OF_KIND`.
        n_unlabeled: Cases in imagesUn, which have no label anywhere, >= 0.

    Raises:
        CollabError: If the folder exists or is misnamed, a number is too small, or the kind is unknown.
    """
    _check_kind("write_dataset", kind)
    if not _FOLDER.fullmatch(folder.name):
        raise CollabError(
            f"write_dataset: nnU-Net finds only folders named DatasetXXX_Name, XXX three digits; got {folder.name}. "
            "Choose a name such as Dataset900_Phantom."
        )
    if folder.exists():
        raise CollabError(
            f"write_dataset: nothing is overwritten, but {folder} exists. Remove it or choose another id."
        )
    if n_train < 1 or n_test < 0 or n_unlabeled < 0 or seed < 0:
        raise CollabError(
            "write_dataset: n_train must be at least 1, n_test, n_unlabeled and seed at least 0; "
            f"got {n_train}, {n_test}, {n_unlabeled}, {seed}. Raise what is too small."
        )
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    roles = (("Tr", "train", n_train, kind), ("Ts", "test", n_test, "plain"), ("Un", "unlabeled", n_unlabeled, None))
    try:
        for stream, (suffix, name, n_cases, label_kind) in enumerate(roles):
            for number in range(n_cases):
                rng = np.random.default_rng([seed, stream, number])
                _write_case(rng, partial, suffix, f"{name}{number:03d}", shape, spacing_mm, label_kind)
        _write_json(partial / "dataset.json", kind, n_train)
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _write_case(
    rng: np.random.Generator,
    folder: Path,
    suffix: str,
    case: str,
    shape: tuple[int, int, int],
    spacing_mm: tuple[float, float, float],
    kind: str | None,
) -> None:
    """Write imagesXX/case_0000.nii.gz and, unless the kind is None, labelsXX/case.nii.gz."""
    thicker, wider = rng.uniform(0.96, 1.04, 2)
    spacing = (spacing_mm[0] * thicker, spacing_mm[1] * wider, spacing_mm[2] * wider)
    slices = max(1, shape[0] + int(rng.integers(-1, 2)))
    rows, columns = (max(16, round(n * rng.uniform(0.94, 1.06))) for n in shape[1:])
    turn = sitk.Euler3DTransform((0.0, 0.0, 0.0), *rng.uniform(-0.15, 0.15, 3).tolist())
    origin = rng.uniform(-150, 150, 3).tolist()
    image, labels = make_case(rng, shape=(slices, rows, columns), spacing_mm=spacing, kind=kind or "plain")
    targets = [(image, folder / f"images{suffix}" / f"{case}_0000.nii.gz")]
    if kind is not None:
        targets.append((labels, folder / f"labels{suffix}" / f"{case}.nii.gz"))
    for voxels, path in targets:
        path.parent.mkdir(parents=True, exist_ok=True)
        out = sitk.GetImageFromArray(voxels)
        out.SetSpacing(spacing[::-1])
        out.SetOrigin(origin)
        out.SetDirection(turn.GetMatrix())
        sitk.WriteImage(out, str(path))


def _write_json(path: Path, kind: str, n_train: int) -> None:
    content: dict[str, Any] = {
        "channel_names": {"0": "cine MRI"},
        "labels": LABELS_OF_KIND[kind],
        "numTraining": n_train,
        "file_ending": ".nii.gz",
        "overwrite_image_reader_writer": "SimpleITKIO",
        "description": "Synthetic short-axis cardiac phantom; no patient data.",
    }
    if "heart" in LABELS_OF_KIND[kind]:
        content["regions_class_order"] = [RV, MYO, LV]  # heart first, then what lies within it
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _check_kind(where: str, kind: str) -> None:
    if kind not in LABELS_OF_KIND:
        raise CollabError(f"{where}: kind is one of {', '.join(LABELS_OF_KIND)}; got {kind!r}. Choose one of these.")
