"""What nnU-Net has planned for a dataset; or would plan, from the headers of the images.

nnU-Net's fingerprint reads every voxel. Its planner needs only the shapes and spacings of it, which are in the headers.
So the planner runs in another process (`doctor.facts`), in a temporary folder, on a fingerprint without cropping: where
images have a wide border of zeros, the real plan has smaller shapes.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nnunet_collab.core.errors import CollabError
from nnunet_collab.core.nnunet_folders import channel_names, read_dataset_json
from nnunet_collab.doctor.contents import find_cases
from nnunet_collab.doctor.finding import Finding
from nnunet_collab.doctor.probe import Outcome

_PICTURES = (".png", ".bmp", ".tif")  # nnU-Net's reader of pictures gives them this spacing
_PICTURE_SPACING = (999.0, 1.0, 1.0)


def header_fingerprint(raw: Path) -> dict[str, Any]:
    """A fingerprint in nnU-Net's format from the headers of imagesTr; empty if it cannot be made.

    Intensities are not known and written as 0; they have no influence on patches, batches and spacings.
    """
    try:
        content = read_dataset_json(raw / "dataset.json")
    except CollabError:
        return {}
    images = find_cases(raw, content["file_ending"]).images["imagesTr"]
    shapes, spacings = [], []
    for paths in images.values():
        if (header := _header(paths[0])) is None:
            return {}
        shapes.append(header[0])
        spacings.append(header[1])
    if not shapes:
        return {}
    statistics = ("mean", "median", "std", "min", "max", "percentile_00_5", "percentile_99_5")
    return {
        "spacings": spacings,
        "shapes_after_crop": shapes,
        "foreground_intensity_properties_per_channel": {
            c: dict.fromkeys(statistics, 0.0) for c in channel_names(content)
        },
        "median_relative_size_after_cropping": 1.0,
    }


def estimate(name: str, outcome: Outcome) -> Finding:
    """The finding for what nnU-Net's planner made of `header_fingerprint`."""
    if outcome.error:
        return Finding("warn", f"{name}: what nnU-Net would plan is not known ({outcome.error})")
    told = "; ".join(configuration_text(key, found) for key, found in outcome.facts.items())
    return Finding("ok", f"{name}: by the headers of its images (estimate), nnU-Net would plan {told}")


def existing(name: str, plans: Mapping[str, Mapping[str, Any]]) -> list[Finding]:
    """One finding for each plans file: patches, batches and spacings of its configurations."""
    findings = []
    for identifier, content in plans.items():
        planned = [
            configuration_text(key, found) for key, found in content["configurations"].items() if "patch_size" in found
        ]
        if planned:
            findings.append(Finding("ok", f"{name}: {identifier} (existing plans): {'; '.join(planned)}"))
    return findings


def configuration_text(key: str, found: Mapping[str, Any]) -> str:
    """`2d: patch 256 x 224, batch 49, spacing 1 x 1 mm`."""
    told = [f"patch {_product(found['patch_size'])}"]
    if "batch_size" in found:
        told.append(f"batch {found['batch_size']}")
    if "spacing" in found:
        told.append(f"spacing {_product(found['spacing'])} mm")
    return f"{key}: {', '.join(told)}"


def _product(numbers: Sequence[float]) -> str:
    return " x ".join(f"{number:.3g}" for number in numbers)


def _header(path: Path) -> tuple[list[int], list[float]] | None:
    """Shape and spacing in the order z, y, x; None if the file cannot be read."""
    import SimpleITK as sitk

    reader = sitk.ImageFileReader()
    reader.SetFileName(os.fspath(path))
    try:
        reader.ReadImageInformation()
    except RuntimeError:
        return None
    shape, spacing = [*reader.GetSize()[::-1]], [*reader.GetSpacing()[::-1]]
    if path.name.endswith(_PICTURES):
        return [1, *shape[-2:]], [*_PICTURE_SPACING]
    # nnU-Net's reader gives a 2D image a third axis with a spacing that never is the finest.
    return ([1, *shape], [max(spacing) * 999.0, *spacing]) if len(shape) == 2 else (shape, spacing)
