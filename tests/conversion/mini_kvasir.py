"""A miniature Kvasir-SEG: JPEG pictures of different sizes, JPEG masks in three channels that are not quite binary."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

PICTURES = [f"cju{i}qkwl35piu0993l0dewei{i}" for i in range(10)]


def size(number: int) -> tuple[int, int]:
    """Rows and columns."""
    return 24 + 3 * number, 40 - 2 * number


def truth(number: int) -> np.ndarray:
    """The mask that was saved as JPEG: a box, whose border does not fall on JPEG's blocks."""
    mask = np.zeros(size(number), bool)
    mask[5:17, 7 : 15 + number] = True
    return mask


def write_kvasir(root: Path) -> Path:
    for folder in ("images", "masks"):
        (root / folder).mkdir(parents=True)
    for number, name in enumerate(PICTURES):
        picture = np.random.default_rng(number).integers(0, 255, (*size(number), 3)).astype(np.uint8)
        # Color at full resolution: of the coarse colors JPEG usually stores, every decoder makes something else.
        Image.fromarray(picture).save(root / "images" / f"{name}.jpg", subsampling=0)
        gray = np.repeat((truth(number) * 255).astype(np.uint8)[..., None], 3, axis=2)
        Image.fromarray(gray[..., 0] if number == 9 else gray).save(root / "masks" / f"{name}.jpg", quality=80)
    (root / "kavsir_bboxes.json").write_text("{}")
    return root
