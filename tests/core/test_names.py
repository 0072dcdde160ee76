"""Which names may become paths."""

from __future__ import annotations

import pytest

from nnunet_collab.core.errors import CollabError
from nnunet_collab.core.names import require_plain_name


@pytest.mark.parametrize("name", ["a", "patient001_frame01", "nnUNetPlans", "ä b", "x.y", "-x", "a" * 200])
def test_plain_names(name):
    assert require_plain_name("here", name) == name


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        pytest.param("../../../x", "path separator", id="name-leads-outside"),
        pytest.param("/etc/x", "path separator", id="name-is-absolute"),
        pytest.param("a/b", "path separator", id="name-with-a-slash"),
        pytest.param("a\\b", "path separator", id="name-with-a-backslash"),
        pytest.param("C:", "colon", id="name-is-a-drive"),
        pytest.param(".", "begins with a dot", id="name-is-a-dot"),
        pytest.param("..", "begins with a dot", id="name-is-two-dots"),
        pytest.param(".hidden", "begins with a dot", id="name-is-hidden"),
        pytest.param("x.", "ends with a dot", id="name-ends-with-a-dot"),
        pytest.param(" x", "begins or ends with a space", id="name-begins-with-a-space"),
        pytest.param("", "it is empty", id="name-is-empty"),
        pytest.param("  ", "it is empty", id="name-is-blank"),
        pytest.param("a\0b", "control character", id="name-with-nul"),
        pytest.param("a\nb", "control character", id="name-with-a-line-break"),
        pytest.param("a\x1b[2Jb", "control character", id="name-with-an-escape"),
        pytest.param("a\ud800", "control character", id="name-with-half-a-character"),
        pytest.param("ä" * 101, "more than 200 bytes", id="name-too-long"),
        pytest.param(None, "it is not a text", id="name-is-null"),
        pytest.param(7, "it is not a text", id="name-is-a-number"),
        pytest.param(["x"], "it is not a text", id="name-is-a-list"),
    ],
)
def test_other_names(name, fault):
    with pytest.raises(CollabError, match=rf"^here: the name must be a valid file name; .*{fault}.*Rename it\.$"):
        require_plain_name("here", name)
