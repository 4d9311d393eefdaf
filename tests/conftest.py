"""Options and fixtures that every test may use."""

import random
import re
from pathlib import Path

import pytest
from hypothesis import settings

settings.register_profile("emte", deadline=None)  # a busy machine is no failure
settings.load_profile("emte")


def pytest_addoption(parser):
    group = parser.getgroup("emte")
    group.addoption(
        "--vcd",
        action="store_true",
        help="write the waveforms of each simulated test to build/vcd/ "
        "(of the last simulation, where a test runs several)",
    )
    group.addoption("--seed", type=int, default=1, help="seed of all random stimulus (default: 1)")


def pytest_report_header(config):
    return f"seed: {config.getoption('seed')}"


@pytest.fixture
def seed(request) -> int:
    """Seed of random stimulus; printed in the header, set by ``--seed``."""
    return request.config.getoption("seed")


@pytest.fixture
def rng(request, seed) -> random.Random:
    """Random numbers that depend on the seed and on the test, but on no other test."""
    return random.Random(f"{seed} {request.node.nodeid}")


@pytest.fixture(autouse=True)
def _vcd(request, monkeypatch):
    if request.config.getoption("vcd"):
        name = re.sub(r"[^\w.-]+", "-", request.node.nodeid.removeprefix("tests/")).strip("-")
        folder = Path(request.config.rootpath) / "build" / "vcd"
        monkeypatch.setenv("EMTE_VCD", str(folder / f"{name}.vcd"))
