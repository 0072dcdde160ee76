"""`nnunet_collab presets`: the presets that ship with the package, each with its trainer and what it is."""

from __future__ import annotations

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """There are none."""


def run(args: argparse.Namespace) -> int:
    """Print a line for each.

    Returns:
        0.
    """
    from nnunet_collab.core.presets import presets

    found = presets()
    names, trainers = (max(len(preset[i]) for preset in found) for i in (0, 1))
    for preset in found:
        print(f"{preset.name:<{names}}  {preset.trainer:<{trainers}}  {preset.description.split('. ')[0]}.")
    return 0
