"""Python runs this at its start where this folder is on PYTHONPATH: what the tests change in nnU-Net's commands.

`nnUNetv2_train -device cpu` uses as many threads as there are cores, which makes tiny networks slower. `E2E_FORK`
starts nnU-Net's helper processes by forking: a spawned one imports torch anew, which takes longer than its work.
`E2E_WITHOUT_PACKAGE` makes an environment in which this package was never installed.
"""

from __future__ import annotations

import multiprocessing
import os
import sys

multiprocessing.cpu_count = lambda: 1

if os.environ.get("E2E_FORK") == "1":
    original = multiprocessing.get_context
    multiprocessing.get_context = lambda method=None: original("fork" if method == "spawn" else method)

if os.environ.get("E2E_WITHOUT_PACKAGE") == "1":

    class Blocked:
        """Finds nothing where there would be something."""

        @staticmethod
        def find_spec(name, path=None, target=None):
            if name.split(".")[0] == "nnunet_collab":
                raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    sys.meta_path.insert(0, Blocked)
