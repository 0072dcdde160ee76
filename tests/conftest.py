"""What every test starts from: no settings of the user's, and the modules of this folder importable."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch):
    for name in ("nnUNet_collab_settings", "nnUNet_collab_require_pretrained"):
        monkeypatch.delenv(name, raising=False)
