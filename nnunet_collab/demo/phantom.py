"""A cardiac phantom: synthetic short-axis MR images with exact labels, and nnU-Net datasets made of them.

The left ventricle is a tapering, irregular tube: a blood pool (with its papillary muscles, as annotators draw it)
inside of myocardium. The right ventricle is a crescent next to it. Around them are lungs, liver, stomach, aorta, chest
wall and, above the base, an atrium. Some are as bright as blood, some as dark as myocardium, so intensity alone does
not determine the class.

Axes are (z, y, x), z from base to apex. `u` (right) and `v` (down) are mm from the left ventricle's axis in the rotated
frame of the body. Body and heart are scaled down together if the field of view is smaller than 140 mm.
"""

from __future__ import annotations

import math
import re
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import SimpleITK as sitk
from nnunetv2.dataset_conversion.generate_dataset_json import generate_dataset_json
from scipy import ndimage

from nnunet_collab.core.errors import CollabError

Array = npt.NDArray[Any]
Rng = np.random.Generator
Shape = tuple[int, int, int]
Spacing = tuple[float, float, float]

RV, MYO, LV, IGNORE = 1, 2, 3, 4
_CLASSES: dict[str, Any] = {"background": 0, "RV": RV, "MYO": MYO, "LV": LV}
_REGIONS: dict[str, Any] = {"background": 0, "heart": [RV, MYO, LV], "left_heart": [MYO, LV], "LV": LV}
# nnU-Net's four kinds of labels -> `labels` of dataset.json.
LABELS_OF_KIND: dict[str, dict[str, Any]] = {"plain": _CLASSES, "regions": _REGIONS}
LABELS_OF_KIND |= {"ignore": {**_CLASSES, "ignore": IGNORE}, "regions_ignore": {**_REGIONS, "ignore": IGNORE}}

# fmt: off
# What differs between cases, uniform between two bounds; lengths in mm, angles in rad, intensities relative to blood.
_RANGES: dict[str, tuple[float, float]] = {
    # Rotation and shift of the body, tilt of the heart's axis (mm per mm), length of the heart (share of the stack),
    # position of the rest of the stack (1: all above the base), heart beat (below 0.5 near diastole, above it near
    # systole).
    "turn": (-0.45, 0.45), "shift_u": (-7, 7), "shift_v": (-7, 7), "lean_u": (-0.12, 0.12), "lean_v": (-0.12, 0.12),
    "length": (0.66, 0.92), "base_at": (0, 1), "beat": (0, 1),
    # Left ventricle at the base in diastole: radius of the pool, wall and its unevenness, harmonics of the outline.
    "endo_mm": (19, 26), "wall_mm": (6.5, 10.5), "uneven": (0, 0.18), "oval": (0, 0.10), "oval_at": (0, math.pi),
    "lumpy": (0, 0.05), "lumpy_at": (0, math.pi),
    # Right ventricle: its largest width, its direction from the left ventricle's axis, half of its opening angle.
    "rv_mm": (20, 31), "rv_at": (math.pi - 0.3, math.pi + 0.3), "rv_span": (1.15, 1.45),
    # Look. With `rv_contrast` below 0.12 the right ventricle's blood is nearly as dark as myocardium. `bias` is the
    # standard deviation of the field's logarithm, `gain` the scanner's arbitrary unit.
    "myo": (0.28, 0.50), "rv_blood": (0.82, 1.08), "rv_contrast": (0, 1), "tissue": (0.40, 0.62), "fat": (0.70, 1.10),
    "lung": (0.06, 0.18), "liver": (0.35, 0.70), "texture": (0.03, 0.07), "noise": (0.03, 0.07), "blur_px": (0.5, 0.85),
    "bias": (0.10, 0.28), "gain": (150, 600),
}
# Center u, v and half axes u, v in mm, brightness (or which of the above). The stomach is a ring around bright content,
# like a left ventricle; the aorta is as bright as one.
_ORGANS: dict[str, tuple[float, float, float, float, str | float]] = {
    "left lung": (74, -8, 40, 58, "lung"), "right lung": (-62, -44, 30, 24, "lung"), "aorta": (-8, 54, 9, 9, 1.0),
    "liver": (-46, 74, 66, 34, "liver"), "stomach": (44, 56, 19, 16, "myo"), "stomach content": (44, 56, 13, 10, 0.95),
}
# fmt: on


def make_case(rng: Rng, *, shape: Shape, spacing_mm: Spacing, kind: str = "plain") -> tuple[Array, Array]:
    """Draw one case; the image does not depend on the kind.

    Args:
        rng: Source of all randomness.
        shape: Voxels along (z, y, x), at least (1, 16, 16).
        spacing_mm: Voxel size along (z, y, x), > 0.
        kind: A key of `LABELS_OF_KIND`. With an ignore label, 60 % of the slices keep only scribbles (about 15 % of
            their voxels) and hold 4 elsewhere. Regions are unions of the same integers.

    Returns:
        Image, float32 (z, y, x), >= 0; labels, uint8 (z, y, x): 0 background, 1 RV, 2 MYO, 3 LV, 4 ignore.

    Raises:
        CollabError: If the kind is unknown.
        ValueError: If the shape or the spacing is too small.
    """
    if kind not in LABELS_OF_KIND:
        raise CollabError(
            f"make_case: kind must be one of {', '.join(LABELS_OF_KIND)}; got {kind!r}. Choose one of these."
        )
    if shape[0] < 1 or min(shape[1:]) < 16 or min(spacing_mm) <= 0:
        raise ValueError(f"make_case: shape must be >= (1, 16, 16) and spacing_mm > 0; got {shape} and {spacing_mm}")
    p = SimpleNamespace(**{name: rng.uniform(*bounds) for name, bounds in _RANGES.items()})
    p.organ_shift_mm, p.organ_size = rng.uniform(-5, 5, 2), rng.uniform(0.85, 1.15)
    p.slice_shift_mm = rng.normal(0, 0.7, (2, shape[0], 1, 1))  # slices are shifted: breath-holds differ
    shrink = min(1.0, shape[1] * spacing_mm[1] / 140, shape[2] * spacing_mm[2] / 140)
    step_mm = (spacing_mm[0], spacing_mm[1] / shrink, spacing_mm[2] / shrink)
    axes = [(np.arange(n) - (n - 1) / 2) * step for n, step in zip(shape, step_mm, strict=True)]
    wobble, grain, coil = (_field(rng, axes, *lengths_mm) for lengths_mm in ((22, 60), (7, 16), (150, 320)))
    labels, blood, outside_mm, u, v = _heart(p, axes, shape[0] * spacing_mm[0])
    image = _body(p, u, v, wobble, grain)
    image[(outside_mm > 0) & (outside_mm < 4 * wobble)] = p.fat
    image[outside_mm <= 0] = p.myo
    image[labels == RV] = p.rv_blood if p.rv_contrast > 0.12 else p.myo + 0.45 * (1 - p.myo)
    image[blood] = 1
    image = ndimage.gaussian_filter(image * (1 + p.texture * grain), (0.3, p.blur_px, p.blur_px))
    # The magnitude of a complex signal with Gaussian noise in both channels: Rician.
    real, imaginary = p.noise * rng.standard_normal((2, *shape), dtype=np.float32)
    image = p.gain * np.hypot(image * np.exp(p.bias * coil) + real, imaginary)
    if "ignore" in LABELS_OF_KIND[kind]:
        sparse = np.isin(np.arange(shape[0]), rng.permutation(shape[0])[: max(1, round(0.6 * shape[0]))])
        scribble = np.abs(_field(rng, axes, 14, 26)) < 0.18  # thin winding lines
        labels[sparse[:, None, None] & ~scribble] = IGNORE
    return image.astype(np.float32), labels


def _field(rng: Rng, axes: list[Array], shortest_mm: float, longest_mm: float) -> Array:
    """A smooth random field on the grid (z, y, x), roughly normal with unit variance: a sum of 16 plane waves."""
    towards, length_mm = rng.normal(size=(16, 3)), rng.uniform(shortest_mm, longest_mm, (16, 1))
    vectors = 2 * np.pi / length_mm * towards / np.linalg.norm(towards, axis=1, keepdims=True)  # rad/mm
    along = [np.exp(1j * np.outer(vectors[:, i], axis)) for i, axis in enumerate(axes)]
    total = np.einsum("k,kz,ky,kx->zyx", np.exp(1j * rng.uniform(0, 2 * np.pi, 16)), *along, optimize=True).real
    return np.asarray(total * math.sqrt(2 / 16), dtype=np.float32)


def _heart(p: SimpleNamespace, axes: list[Array], stack_mm: float) -> tuple[Array, Array, Array, Array, Array]:
    """Labels, bright blood except in the right ventricle, distance from the heart in mm, u and v: each (z, y, x)."""
    z, y, x = np.ix_(*axes)
    # 12 mm: the left ventricle is not in the middle of the heart.
    u = math.cos(p.turn) * x + math.sin(p.turn) * y - 12 - p.shift_u - p.lean_u * z - p.slice_shift_mm[0]
    v = math.cos(p.turn) * y - math.sin(p.turn) * x - p.shift_v - p.lean_v * z - p.slice_shift_mm[1]
    rho, theta = np.hypot(u, v), np.arctan2(v, u)
    squeeze = 0.2 * p.beat if p.beat < 0.5 else 0.6 + 0.4 * p.beat
    length_mm = p.length * min(stack_mm, 95) * (1 - 0.1 * squeeze)
    depth = (z + stack_mm / 2 - p.base_at * (stack_mm - length_mm)) / length_mm  # 0 at the base, 1 at the apex
    here, t = (depth >= 0) & (depth <= 1), depth.clip(0, 1)
    # The muscle's area is constant while the pool contracts, so the wall thickens.
    endo_base = p.endo_mm * (1 - 0.32 * squeeze)
    wall_base = math.sqrt(endo_base**2 + (p.endo_mm + p.wall_mm) ** 2 - p.endo_mm**2) - endo_base
    endo, wall = endo_base * np.sqrt((1 - (t / 0.96) ** 2.5).clip(0)), wall_base * (1 - 0.3 * t)
    outline = 1 + p.oval * np.cos(2 * (theta - p.oval_at)) + p.lumpy * np.cos(3 * (theta - p.lumpy_at))
    epi = (endo + wall) * outline
    in_epi = here & (rho < epi)
    pool = (endo > 0) & (rho < endo * outline + p.uneven * wall * np.cos(theta - p.oval_at))
    # For every grid: the pool touches only wall and has heart below it, so that the wall is connected.
    below = np.pad((in_epi | ~here)[1:], ((0, 1), (0, 0), (0, 0)), constant_values=True)
    pool &= ndimage.binary_erosion(in_epi & below, np.ones((1, 3, 3)))

    off_axis = np.abs((theta - p.rv_at + np.pi) % (2 * np.pi) - np.pi) / (p.rv_span * (1 - 0.25 * t))
    width = p.rv_mm * (1 - 0.25 * squeeze) * (1 - (t / 0.85) ** 1.6)
    crescent = np.where(width > 5, width, 0) * np.cos(off_axis.clip(0, 1) * np.pi / 2) ** 0.7
    parts, _ = ndimage.label(here & ~in_epi & (rho < epi + crescent))
    right = (parts > 0) & (
        parts == np.bincount(parts.ravel(), minlength=2)[1:].argmax() + 1
    )  # no isolated voxels at its tips
    labels = np.select([pool, in_epi, right], [LV, MYO, RV]).astype(np.uint8)
    surface = np.where(here, epi + np.where(crescent > 0, crescent + 2.5, 0), 0.9 * epi)
    outside_mm = np.where(depth <= 1, rho - surface, np.inf)
    blood = pool | ((depth < 0) & (outside_mm < -2))  # above the base: an atrium, which has no label
    for angle in (p.rv_at + 2.0, p.rv_at - 2.1):  # papillary muscles
        from_muscle = np.hypot(u - 0.66 * endo * math.cos(angle), v - 0.66 * endo * math.sin(angle))
        blood &= (from_muscle > 0.16 * endo) | (np.abs(depth - 0.45) > 0.3)
    return labels, blood, outside_mm, u, v


def _body(p: SimpleNamespace, u: Array, v: Array, wobble: Array, grain: Array) -> Array:
    """Tissue around the heart, without bias and noise: float32 (z, y, x)."""
    image = p.tissue * (1 + 0.15 * wobble)
    for at_u, at_v, half_u, half_v, look in _ORGANS.values():
        off_u, off_v = u - at_u - p.organ_shift_mm[0], v - at_v - p.organ_shift_mm[1]
        inside = np.hypot(off_u / half_u, off_v / half_v) < p.organ_size * (1 + 0.12 * wobble)
        image[inside] = getattr(p, look) if isinstance(look, str) else look
        if look in ("lung", "liver"):
            image[inside & (grain > 1.6)] = 0.8  # vessels
    # 1 at the skin; further inside: fat, then ribs with muscle between them.
    chest = np.hypot((u + 5) / 120, (v - 35) / 105) * (1 + 0.01 * wobble)
    image[chest > 0.82] = 0.35
    image[(chest > 0.84) & (np.cos(16 * np.arctan2(v - 35, u + 5) + wobble) > 0.2)] = 0.65
    image[chest > 0.91] = p.fat
    image[chest > 1] = 0.02
    return np.asarray(image, dtype=np.float32)


def write_dataset(
    folder: Path,
    *,
    n_train: int,
    n_test: int,
    seed: int,
    shape: Shape = (8, 96, 96),
    spacing_mm: Spacing = (8.0, 1.5, 1.5),
    kind: str = "plain",
    n_unlabeled: int = 0,
) -> None:
    """Write an nnU-Net raw dataset of phantoms, completely or not at all.

    A case depends only on the seed, its role and its number: with more cases, the first ones stay the same.

    Args:
        folder: New folder, named `DatasetXXX_Name`.
        n_train: Cases in imagesTr and labelsTr, >= 1.
        n_test: Cases in imagesTs and labelsTs, >= 0. Their labels are complete in every kind.
        seed: Random seed, >= 0.
        shape: Typical number of voxels along (z, y, x); cases differ from it by one slice, and by 6 % in the plane.
        spacing_mm: Typical voxel size along (z, y, x); cases differ from it by 4 %.
        kind: A key of `LABELS_OF_KIND`.
        n_unlabeled: Cases in imagesUn, without labels, >= 0.

    Raises:
        CollabError: If the folder exists or is misnamed, a number is too small, or the kind is unknown.
    """
    if not re.fullmatch(r"Dataset\d{3}_\w+", folder.name) or folder.exists():
        raise CollabError(
            "write_dataset: the folder must be new (nothing is overwritten) and named DatasetXXX_Name, X a digit; "
            f"got {folder}. Choose a free name such as Dataset900_Phantom."
        )
    if n_train < 1 or min(n_test, n_unlabeled, seed) < 0:
        raise CollabError(
            "write_dataset: n_train must be at least 1, and n_test, n_unlabeled and seed at least 0; "
            f"got {n_train}, {n_test}, {n_unlabeled} and {seed}. Increase the number that is too small."
        )
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        for stream, (role, n_cases) in enumerate({"Tr": n_train, "Ts": n_test, "Un": n_unlabeled}.items()):
            for number in range(n_cases):
                rng = np.random.default_rng([seed, stream, number])
                _write_case(rng, partial, role, number, shape, spacing_mm, kind if role == "Tr" else "plain")
        labels = dict(LABELS_OF_KIND[kind])
        order = (RV, MYO, LV) if "heart" in labels else None  # regions: the whole heart first, then its parts
        about = {"regions_class_order": order, "license": "synthetic, no patient data", "converted_by": __name__}
        generate_dataset_json(str(partial), {"0": "cine MRI"}, labels, n_train, ".nii.gz", **about)
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _write_case(rng: Rng, folder: Path, role: str, number: int, shape: Shape, spacing_mm: Spacing, kind: str) -> None:
    """Draw a case near the given shape and spacing; write its image and, unless the role is Un, its labels."""
    rows, columns = (max(16, round(n * rng.uniform(0.94, 1.06))) for n in shape[1:])
    shape = (max(1, shape[0] + int(rng.integers(-1, 2))), rows, columns)
    thicker, wider = rng.uniform(0.96, 1.04, 2)
    spacing_mm = (spacing_mm[0] * thicker, spacing_mm[1] * wider, spacing_mm[2] * wider)
    origin_mm, angles = rng.uniform(-150, 150, 3).tolist(), rng.uniform(-0.15, 0.15, 3).tolist()
    image, labels = make_case(rng, shape=shape, spacing_mm=spacing_mm, kind=kind)
    files = {folder / f"images{role}" / f"phantom{role}{number:03d}_0000.nii.gz": image}
    if role != "Un":
        files[folder / f"labels{role}" / f"phantom{role}{number:03d}.nii.gz"] = labels
    for path, voxels in files.items():
        volume = sitk.GetImageFromArray(voxels)
        volume.SetSpacing(spacing_mm[::-1])
        volume.SetOrigin(origin_mm)
        volume.SetDirection(sitk.Euler3DTransform((0.0, 0.0, 0.0), *angles).GetMatrix())
        path.parent.mkdir(parents=True, exist_ok=True)
        sitk.WriteImage(volume, str(path))
