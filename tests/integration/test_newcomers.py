"""What people try first has the clusters that they expect; see ``tests.newcomers``, which measures three seeds of all."""

import numpy as np
import pytest

from tests.newcomers import CASES, Case, measure

SMALL = 3_000
"""Rows up to which three seeds are measured here, and one above: all of them together would take five minutes of a core."""


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_what_people_try_first(case: Case) -> None:
    seeds = 3 if len(case.make(0).label_N) <= SMALL else 1
    assert np.mean(list(measure(case, seeds))) >= case.asked
