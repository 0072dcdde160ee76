"""`python -m nnunet_collab`: the same as the console command."""

from __future__ import annotations

import sys

from nnunet_collab.cli import main

# Worker processes that are spawned do not run a package's __main__ again, so no guard is needed.
sys.exit(main())
