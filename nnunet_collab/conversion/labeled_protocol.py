"""The few-label protocols: some training patients keep their labels, the others become cases of imagesUn without any.

The patients are the first ones of a published order where there is one and the source holds its patients; otherwise
they are drawn. Either way, with the same source and seed, the patients of a smaller protocol are among those of a
larger one. Patients that are validated on keep their labels and are not counted.
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
    """How many patients keep their labels, and the seed of the drawing.

    Attributes:
        labeled: A number of patients, or a share of them in (0, 1).
        seed: Only used where no published order applies.
    """

    labeled: int | Fraction
    seed: int = 0

    def __str__(self) -> str:
        """As it is written on the command line."""
        share = isinstance(self.labeled, Fraction)
        return f"{float(self.labeled * 100):g}%" if share else str(self.labeled)


@dataclass(frozen=True)
class PublishedOrder:
    """Training patients in the order of a public list, whose first n are the labeled ones.

    Attributes:
        patients: The list, or its beginning.
        source: Where the list is from, for dataset.json.
        whole: How many training patients the list has; with another number in the source it does not apply.
    """

    patients: Sequence[str]
    source: str
    whole: int


@dataclass(frozen=True)
class Choice:
    """What a protocol makes of the training cases.

    Attributes:
        labeled: Cases of the chosen patients, and of those that are validated on.
        unlabeled: The other cases, with no label to be written.
        record: For dataset.json.
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
        cases: All training cases, those that are validated on included.
        patient_of: Case name -> patient.
        protocol: How many.
        validation: Patients that are validated on.
        order: The published order, if there is one.

    Raises:
        CollabError: If no patient would be left without labels.
    """
    pool = sorted({patient_of(case.name) for case in cases} - set(validation))
    count = number_of_patients(protocol.labeled, len(pool))
    if count >= len(pool):
        raise CollabError(
            f"--labeled: at least one of the {len(pool)} training patients must be left without labels; got "
            f"{protocol}, which is {count}. Ask for fewer, or leave --labeled out."
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
