"""What is measured beside the usual metrics: surface Dice at a tolerance, and classes that consist of lesions."""

from __future__ import annotations

import argparse
import csv
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from nnunet_collab.core.errors import CollabError

LESION_IOU = 0.1  # the usual 0.5 rejects most small lesions, of which a shift of one voxel leaves less


class Options(NamedTuple):
    """The options of the commands that measure, before the classes are known.

    Attributes:
        nsd_tolerance: One number for all classes, or the path of a file with one per class: JSON
            (`{"liver": 2, "cyst": 1}`) or CSV with the columns `class` and `tolerance`; None: no surface Dice.
        lesions: Names of classes.
        lesion_iou: See `Choices`.
    """

    nsd_tolerance: str | None = None
    lesions: tuple[str, ...] = ()
    lesion_iou: float = LESION_IOU


NOTHING = Options()


def add_options(parser: argparse._ActionsContainer) -> None:
    """Add the options to the parser of a command; `options_of` reads them."""
    parser.add_argument(
        "--nsd_tolerance",
        metavar="MM",
        help="measure the normalized surface Dice (NSD) at this tolerance in mm (in pixels for images without "
        "spacing); or a JSON or CSV file with a tolerance for each class",
    )
    parser.add_argument(
        "--lesions",
        metavar="CLASS",
        nargs="+",
        default=[],
        help="classes that consist of lesions: F1, sensitivity, precision and Dice of their connected components",
    )
    parser.add_argument(
        "--lesion_iou",
        metavar="IOU",
        type=float,
        default=LESION_IOU,
        help="smallest IoU of a predicted and a true lesion that match (default: %(default)s)",
    )


def options_of(args: argparse.Namespace) -> Options:
    """The options that `add_options` has added."""
    return Options(args.nsd_tolerance, tuple(args.lesions), args.lesion_iou)


class Choices(NamedTuple):
    """Measures that somebody must ask for, with the names of dataset.json's classes.

    Attributes:
        nsd_tolerance: Class -> tolerance of its normalized surface Dice, in mm (pixels for images without spacing);
            empty: it is not measured.
        lesions: Classes that are measured lesion by lesion.
        lesion_iou: Smallest IoU of a true and a predicted lesion that match.
    """

    nsd_tolerance: Mapping[str, float] = {}
    lesions: tuple[str, ...] = ()
    lesion_iou: float = LESION_IOU


def read_choices(classes: Iterable[str], options: Options) -> Choices:
    """Check the options against the names of the classes in dataset.json.

    Raises:
        CollabError: If a file cannot be read, a class is unknown, has no tolerance or has two, a number is out of
        range;
            all of these together.
    """
    known = list(classes)
    tolerances: dict[str, float] = {}
    problems: list[str] = []
    if options.nsd_tolerance is not None:
        tolerances, problems = _tolerances(options.nsd_tolerance, known)
    if unknown := [name for name in options.lesions if name not in known]:
        problems.append(f"--lesions must name classes of dataset.json ({', '.join(known)}); got {', '.join(unknown)}")
    if not 0 < options.lesion_iou <= 1:
        problems.append(f"--lesion_iou must be above 0 and at most 1; got {options.lesion_iou:g}")
    if problems:
        told = "\n".join(f"- {problem}" for problem in problems)
        raise CollabError(f"evaluate: the options must fit the classes; {len(problems)} do not. Correct them:\n{told}")
    return Choices(tolerances, tuple(dict.fromkeys(options.lesions)), options.lesion_iou)


def _tolerances(given: str, classes: Sequence[str]) -> tuple[dict[str, float], list[str]]:
    """Tolerance of every class, and what is wrong with them."""
    try:
        pairs: list[tuple[str, Any]] = [(name, float(given)) for name in classes]
        source = "--nsd_tolerance"
    except ValueError:
        pairs, source = _from_file(Path(given)), given
    names = [name for name, _ in pairs]
    problems = [f"{source} must hold every class once; {name} is there twice" for name in _twice(names)]
    problems += [f"{source} must name classes of dataset.json; got {name}" for name in names if name not in classes]
    problems += [f"{source} must hold every class; {name} is missing" for name in classes if name not in names]
    found = {}
    for name, value in pairs:
        number = _number(value)
        if not (math.isfinite(number) and number > 0):
            problems.append(f"{source} must hold tolerances above 0; that of {name} is {value!r}")
        found[name] = number
    return found, list(dict.fromkeys(problems))


def _from_file(path: Path) -> list[tuple[str, Any]]:
    rule = "evaluate: --nsd_tolerance must be a number, or a JSON or CSV file with a tolerance per class"
    fix = 'Write {"class": 2.0, ...}, or a CSV with the columns class and tolerance.'
    try:
        text = path.read_text(encoding="utf-8-sig")
        if path.suffix.lower() == ".csv":
            return [(row["class"], row["tolerance"]) for row in csv.DictReader(text.splitlines())]
        content = json.loads(text, object_pairs_hook=list)
    except (OSError, ValueError, KeyError) as error:
        raise CollabError(f"{rule}; {path} gave {type(error).__name__}: {error}. {fix}") from error
    if not text.lstrip().startswith("{"):
        raise CollabError(f"{rule}; {path} does not hold a JSON object. {fix}")
    return [(str(name), value) for name, value in content]


def _twice(names: Sequence[str]) -> list[str]:
    return sorted({name for name in names if names.count(name) > 1})


def _number(value: Any) -> float:
    """NaN for what is not a number."""
    try:
        return math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        return math.nan
