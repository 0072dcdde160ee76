"""A laboratory for studies."""

from __future__ import annotations

import pytest
from studying import Lab


@pytest.fixture
def lab(tmp_path, monkeypatch):
    return Lab(tmp_path, monkeypatch)
