"""How commands end: a line and a status instead of a traceback."""

from __future__ import annotations

import errno
import os
from types import SimpleNamespace

import pytest

from nnunet_collab import cli
from nnunet_collab.cli import COMMANDS, main
from nnunet_collab.core.errors import CollabError


def ending_with(error):
    def run(_args):
        raise error

    return SimpleNamespace(add_arguments=lambda parser: None, run=run, converter_names=lambda: [])


ENDS = [
    pytest.param(KeyboardInterrupt(), 130, "interrupted", id="ctrl-c"),
    pytest.param(CollabError("x: y"), 2, "x: y", id="refused"),
    pytest.param(PermissionError(errno.EACCES, os.strerror(errno.EACCES), "/p/q"), 1, "/p/q: ", id="no-permission"),
    pytest.param(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), 1, "No space left", id="disk-full"),
    pytest.param(FileNotFoundError(errno.ENOENT, "No such file", "/p"), 1, "/p: ", id="no-such-folder"),
    pytest.param(IsADirectoryError(errno.EISDIR, "Is a directory", "/p"), 1, "Is a directory", id="is-a-folder"),
    pytest.param(OSError("odd"), 1, "reports: odd", id="other-error-of-the-system"),
]


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize(("error", "status", "said"), ENDS)
def test_every_command_ends_in_one_line(monkeypatch, capsys, name, error, status, said):
    monkeypatch.setattr(cli.importlib, "import_module", lambda _: ending_with(error))
    assert main([name]) == status
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("nnunet_collab: ")
    assert said in err
    assert err.count("\n") == 1


def test_ctrl_c_while_a_command_is_imported(monkeypatch, capsys):
    def interrupted(_):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli.importlib, "import_module", interrupted)
    assert main(["split"]) == 130
    assert capsys.readouterr().err.count("\n") == 1


def test_a_fault_of_ours_keeps_its_traceback(monkeypatch):
    monkeypatch.setattr(cli.importlib, "import_module", lambda _: ending_with(ZeroDivisionError("ours")))
    with pytest.raises(ZeroDivisionError):
        main(["split"])
