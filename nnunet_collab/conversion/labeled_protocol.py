"""Few-label protocols: some training patients keep their labels, the images of the others go to imagesUn.

If there is a published order and the source holds its patients, the first patients of that order keep their labels.
Otherwise the patients are drawn at random. In both cases, with the same source and seed, the patients of a smaller
protocol are a subset of those of a larger one. Validation patients keep their labels and are not counted.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

from nnunet_collab.conversion.source_check import Case
from nnunet_collab.core.errors import CollabError
from nnunet_collab.splits.few_labels import number_of_patients, parse_labeled
from nnunet_collab.splits.patient_folds import shuffled


@dataclass(frozen=True)
class Protocol:
    """The number of patients that keep their labels, and the seed for drawing them.

    Attributes:
        labeled: Number of patients, or share of the patients in (0, 1).
        seed: Seed for drawing; used only if no published order applies.
    """

    labeled: int | Fraction
    seed: int = 0

    def __str__(self) -> str:
        """The protocol in the form of the command line."""
        share = isinstance(self.labeled, Fraction)
        return f"{float(self.labeled * 100):g}%" if share else str(self.labeled)


@dataclass(frozen=True)
class PublishedOrder:
    """Training patients in the order of a public list; the first n patients are the labeled ones.

    Attributes:
        patients: The list, or its first entries.
        source: Source of the list, for dataset.json.
        whole: Number of training patients in the list. The list applies only if the source has the same number.
    """

    patients: Sequence[str]
    source: str
    whole: int


@dataclass(frozen=True)
class Choice:
    """The training cases, divided by a protocol.

    Attributes:
        labeled: Cases of the chosen patients and of the validation patients.
        unlabeled: All other cases, without labels.
        record: Description of the choice, for dataset.json.
    """

    labeled: list[Case]
    unlabeled: list[Case]
    record: dict[str, object]


def parse_protocol(word: str, seed: int = 0) -> Protocol:
    """The protocol "7" (patients) or "50%" (of the patients).

    Raises:
        CollabError: If the word is neither, or the number is out of range.
    """
    labeled = parse_labeled([word.replace(" %", "%")])
    if isinstance(labeled, tuple):
        raise CollabError(
            f"--labeled: PROTOCOL must be a number of patients or a percentage of them; got {word!r}. Write e.g. 7 or "
            "50%."
        )
    return Protocol(labeled, seed)


def choose(
    cases: Sequence[Case],
    patient_of: Callable[[str], str],
    protocol: Protocol,
    *,
    validation: Sequence[str] = (),
    order: PublishedOrder | None = None,
) -> Choice:
    """Divide training cases into labeled and unlabeled ones, by patient.

    Args:
        cases: All training cases, including those of the validation patients.
        patient_of: Case name -> patient.
        protocol: Number or share of patients that keep their labels.
        validation: Validation patients.
        order: Published order, or None.

    Raises:
        CollabError: If no patient would be unlabeled.
    """
    pool = sorted({patient_of(case.name) for case in cases} - set(validation))
    count = number_of_patients(protocol.labeled, len(pool))
    if count >= len(pool):
        raise CollabError(
            f"--labeled: at least one of the {len(pool)} training patients must be unlabeled; got {protocol}, which is "
            f"{count} labeled patients. Choose a smaller number, or leave --labeled out."
        )
    if (
        order is not None
        and len(pool) == order.whole
        and set(order.patients[:count]) <= set(pool)
        and (count <= len(order.patients))
    ):
        chosen, how = list(order.patients[:count]), f"the first {count} of {order.source}"
    else:
        chosen = shuffled(pool, random.Random(protocol.seed))[:count]
        how = "drawn at random by patient; no published list of case names was used"
    keep = {*chosen, *validation}
    unlabeled = [replace(case, label=None) for case in cases if patient_of(case.name) not in keep]
    return Choice(
        [case for case in cases if patient_of(case.name) in keep],
        unlabeled,
        {
            "protocol": str(protocol),
            "seed": protocol.seed,
            "chosen": how,
            "labeled_patients": sorted(chosen),
            "validation_patients": sorted(validation),
            "unlabeled_cases": [case.name for case in unlabeled],
        },
    )
