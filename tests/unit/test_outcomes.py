import json

import numpy as np
import pytest
from emte.sim.outcomes import Outcomes

PASS = {"outcome": "pass"}
FAULT = {"outcome": "tag_check_fault", "far": "0x10", "wnr": 1}
EQUAL = dict(FAULT)  # and yet another object
EVERY = [PASS, {}, PASS, FAULT, EQUAL, PASS]


@pytest.fixture(params=["one by one", "in an array"])
def outcomes(request):
    if request.param == "one by one":
        return Outcomes.of(iter(EVERY))
    never = {"outcome": "squashed"}
    return Outcomes([{}, FAULT, PASS, never, EQUAL], np.array([2, 0, 2, 1, 4, 2], np.uint32))


def test_it_is_a_sequence(outcomes):
    assert list(outcomes) == EVERY
    assert len(outcomes) == 6
    assert outcomes[-2] == FAULT
    assert outcomes[0] is outcomes[5]
    assert list(outcomes[1:4]) == EVERY[1:4]
    with pytest.raises(IndexError):
        outcomes[6]


def test_equal_to_what_has_equal_elements(outcomes):
    assert outcomes == EVERY
    assert outcomes == Outcomes.of(EVERY)
    assert outcomes != EVERY[:-1]
    assert outcomes != Outcomes.of(reversed(EVERY))
    assert outcomes != 6


def test_where(outcomes):
    assert outcomes.where(lambda outcome: "far" in outcome) == [3, 4]
    assert outcomes.where(lambda outcome: not outcome) == [1]
    assert outcomes.where(lambda outcome: outcome.get("outcome") == "squashed") == []


def test_verdicts(outcomes):
    assert outcomes.verdicts() == {"pass": 3, "tag_check_fault": 2}


def test_lines(outcomes):
    text = b"".join(outcomes.lines()).decode()
    assert text.endswith("}\n")
    assert [json.loads(line) for line in text.splitlines()] == EVERY
    assert " " not in text


def test_many_lines_come_in_pieces():
    pieces = list(Outcomes([PASS], np.zeros(200_000, np.uint32)).lines())
    assert 1 < len(pieces) < 10
    assert b"".join(pieces) == b'{"outcome":"pass"}\n' * 200_000


def test_nothing():
    nothing = Outcomes.of([])
    assert nothing == []
    assert nothing.verdicts() == {}
    assert nothing.where(lambda outcome: True) == []
    assert list(nothing.lines()) == []
