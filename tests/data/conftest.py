"""What the tests of data and converters share."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture
def raw(tmp_path, monkeypatch) -> Path:
    """nnU-Net's variables name folders that do not exist yet; this is that of the raw datasets."""
    for variable in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        monkeypatch.setenv(variable, str(tmp_path / variable))
    return tmp_path / "nnUNet_raw"
