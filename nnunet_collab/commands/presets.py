"""`nnunet_collab presets`: list the presets that ship with the package, with their trainers and descriptions."""

from __future__ import annotations

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command has no arguments."""


def run(args: argparse.Namespace) -> int:
    """Print one line for each preset.

    Returns:
        0.
    """
    from nnunet_collab.core.presets import presets

    found = presets()
    names, trainers = (max(len(preset[i]) for preset in found) for i in (0, 1))
    for preset in found:
        print(f"{preset.name:<{names}}  {preset.trainer:<{trainers}}  {preset.description.split('. ')[0]}.")
    return 0
