"""What has to happen before and after a network in an ONNX file, as JSON, for those who predict without nnU-Net."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nnunet_collab.core.nnunet_folders import channel_names
from nnunet_collab.inference.model_folder import Model
from nnunet_collab.inference.onnx_network import INPUT, OUTPUT

# nnU-Net v2.8: DefaultPreprocessor.run_case_npy and default_normalization_schemes.
_NORMALIZATIONS = {
    "ZScoreNormalization": "subtract the mean of the image, divide by its standard deviation (at least 1e-8); with "
    "use_mask_for_norm, mean and deviation are of the voxels inside the nonzero mask, and the others stay 0",
    "CTNormalization": "clip to percentile_00_5 and percentile_99_5, subtract mean, divide by std (at least 1e-8)",
    "NoNormalization": "nothing",
    "RescaleTo01Normalization": "subtract the minimum, divide by the maximum of the result (at least 1e-8)",
    "RGBTo01Normalization": "divide by 255",
}


def description(model: Model, outputs: int, checks: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The content of the JSON file.

    Args:
        model: The model.
        outputs: Number of channels of the logits.
        checks: Name of an ONNX file -> how it was compared with the original.
    """
    entry = model.plans["configurations"][model.configuration]
    patch = list(entry["patch_size"])
    regions = model.dataset.get("regions_class_order")
    return {
        "model": f"{model.dataset_name}/{model.folder.name}",
        "use": "for research; this is not a medical device",
        "files": {name: dict(check) for name, check in checks.items()},
        "several_files": "average the logits of the files" if len(checks) > 1 else "one file alone",
        "input": {
            "name": INPUT,
            "type": "float32",
            "shape": ["batch", len(channel_names(model.dataset)), *patch],
            "channels": channel_names(model.dataset),
        },
        "output": {
            "name": OUTPUT,
            "type": "float32",
            "shape": ["batch", outputs, *patch],
            "labels": model.dataset["labels"],
            "to_labels": (
                {"function": "sigmoid; a voxel belongs to a region from 0.5 on", "write_in_this_order": regions}
                if regions
                else {"function": "argmax over axis 1; the index is the label"}
            ),
        },
        "before": {
            "axes": "read arrays as (z, y, x), then transpose them by transpose_forward",
            "transpose_forward": model.plans.get("transpose_forward"),
            "crop": "to the bounding box of all voxels that are not 0 in some channel (holes filled)",
            "normalize_before_resampling": [
                {
                    "channel": number,
                    "scheme": scheme,
                    "meaning": _NORMALIZATIONS.get(scheme, "a scheme of the user"),
                    "use_mask_for_norm": mask,
                    "intensities": model.plans.get("foreground_intensity_properties_per_channel", {}).get(str(number)),
                }
                for number, (scheme, mask) in enumerate(
                    zip(entry["normalization_schemes"], entry["use_mask_for_norm"], strict=True)
                )
            ],
            "spacing_mm": entry["spacing"],
            "spacing_in_2d": "slices keep their distance; only the two axes of the slice are resampled",
            "resampling": {key: entry[key] for key in sorted(entry) if key.startswith("resampling_fn")},
        },
        "windows": {
            "size": patch,
            "pad": "with 0, if the image is smaller",
            "step": "half of the window",
            "weight": "Gaussian around the center, standard deviation 1/8 of the window",
        },
        "after": "resample the logits to the cropped image, make labels, undo the crop, transpose back",
    }
