"""The golden model against what QEMU observed on real instructions."""

import gzip
import json
from pathlib import Path

import pytest
from emte.sim import model, ops

VECTORS = Path(__file__).parent.parent / "data" / "vectors"


@pytest.mark.parametrize("name", ["seed1", "seed2", "seed101"])
def test_model_gives_every_expected_field(name):
    stream = ops.read(VECTORS / f"{name}.ops.jsonl.gz")
    ops.check(stream)
    with gzip.open(VECTORS / f"{name}.expected.jsonl.gz", "rt") as file:
        expected = [json.loads(line) for line in file]
    outcomes = list(model.run(stream))
    assert len(outcomes) == len(expected) == len(stream)
    differences = [
        (operation.line, field, outcome.get(field), value)
        for operation, outcome, fields in zip(stream, outcomes, expected, strict=True)
        for field, value in fields.items()
        if outcome.get(field) != value
    ]
    assert differences == []
    # The vectors are worth their name only if they hold faults of several kinds.
    assert {outcome.get("outcome") for outcome in outcomes} >= {"pass", "tag_check_fault", "async"}
