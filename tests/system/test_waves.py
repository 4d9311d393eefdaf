"""Waveforms of the Verilator engine: both forms, a window, and the compressor that FST needs."""

import ctypes
import re
import struct
import subprocess
from pathlib import Path

import pytest
from emte.rtl import SMALL
from emte.sim import engines, verilated
from emte.sim.traffic import random_stream
from emte.sim.transactions import Waves
from hypothesis import given
from hypothesis import strategies as st

# Its libraries are no other test's, and take long to build: not in one line with the others.
verilator = pytest.mark.xdist_group("waves")

CYCLE = 10
HEADER, HIERARCHY = 0, 6


def run(waves: Waves | None) -> engines.RunResult:
    stream = random_stream(1, 200, held=SMALL.held)
    return engines.run(stream, engine="verilator", config=SMALL, waves=waves)


def times_of_vcd(path: Path) -> list[int]:
    return [int(time) for time in re.findall(r"^#(\d+)$", path.read_text(), re.MULTILINE)]


def blocks_of_fst(path: Path) -> dict[int, bytes]:
    """Content of each kind of block."""
    raw = path.read_bytes()
    blocks = {}
    at = 0
    while at < len(raw):
        kind, length = struct.unpack_from(">BQ", raw, at)
        blocks[kind] = raw[at + 9 : at + 1 + length]
        at += 1 + length
    return blocks


def decompress(block: bytes) -> bytes:
    """A block of LZ4."""
    out = bytearray()
    at = 0

    def length(bits: int) -> int:
        nonlocal at
        count = bits
        while bits == 15:
            count += block[at]
            at += 1
            if block[at - 1] < 255:
                break
        return count

    while True:
        token = block[at]
        at += 1
        literals = length(token >> 4)
        out += block[at : at + literals]
        at += literals
        if at == len(block):
            return bytes(out)
        offset = block[at] | block[at + 1] << 8
        at += 2
        assert 0 < offset <= len(out)
        for _ in range(length(token & 15) + 4):
            out.append(out[-offset])


@verilator
def test_vcd_of_all_cycles(tmp_path):
    path = tmp_path / "new" / "run.vcd"
    cycles = run(Waves(path)).statistics.cycles
    times = times_of_vcd(path)
    assert times[0] == 0
    assert times[-1] == cycles * CYCLE
    assert times == list(range(0, cycles * CYCLE + 1, CYCLE // 2))
    assert "next_access__payload" in path.read_text()


@verilator
def test_window_of_a_vcd(tmp_path):
    path = tmp_path / "run.vcd"
    windowed = run(Waves(path, first=20, last=29))
    assert times_of_vcd(path) == list(range(20 * CYCLE, 30 * CYCLE, CYCLE // 2))
    plain = run(None)
    assert windowed.statistics == plain.statistics
    assert windowed.outcomes == plain.outcomes


@verilator
def test_fst_of_a_window(tmp_path):
    path = tmp_path / "new" / "run.fst"
    assert run(Waves(path, "fst", first=20, last=29)).statistics == run(None).statistics
    blocks = blocks_of_fst(path)
    first, last = struct.unpack_from(">QQ", blocks[HEADER])
    assert (first, last) == (20 * CYCLE, 30 * CYCLE - CYCLE // 2)
    size = struct.unpack_from(">Q", blocks[HIERARCHY])[0]
    hierarchy = decompress(blocks[HIERARCHY][8:])
    assert len(hierarchy) == size
    assert b"next_access__payload" in hierarchy
    assert b"miss_unit\0" in hierarchy


@verilator
def test_fst_without_zlib(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    compiler = tmp_path / "compiler"
    compiler.write_text(
        "#!/bin/sh\necho 'w.cpp:19:10: fatal error: zlib.h: No such file' >&2\nexit 1\n"
    )
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    with pytest.raises(engines.EngineError, match=r"^FST waveforms need zlib .* needs nothing$"):
        run(Waves(tmp_path / "run.fst", "fst"))


@pytest.fixture(scope="module")
def lz4(tmp_path_factory) -> ctypes.CDLL:
    folder = tmp_path_factory.mktemp("lz4")
    (folder / "lz4.cpp").write_text(
        '#include "lz4.h"\n'
        'extern "C" int bound(int n) { return LZ4_compressBound(n); }\n'
        'extern "C" int compress(const char* s, char* t, int n) {'
        " return LZ4_compress_default(s, t, n, bound(n)); }\n"
    )
    options = ("-std=c++20", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", "-o", "lz4.so")
    include = f"-I{Path(verilated.__file__).parent}"
    compiler = verilated.find_compiler()
    subprocess.run([*compiler, *options, include, "lz4.cpp"], cwd=folder, check=True)
    return ctypes.CDLL(str(folder / "lz4.so"))


def compress(lz4: ctypes.CDLL, data: bytes) -> bytes:
    bound = lz4.bound(len(data))
    target = ctypes.create_string_buffer(bound)
    size = lz4.compress(data, target, len(data))
    assert size <= bound
    return target.raw[:size]


@given(pieces=st.lists(st.binary(min_size=1, max_size=40), max_size=8), order=st.randoms())
def test_what_is_compressed_can_be_read(lz4, pieces, order):
    data = b"".join(order.choices(pieces, k=50)) if pieces else b""
    block = compress(lz4, data)
    assert decompress(block) == data


@pytest.mark.parametrize("size", [0, 1, 12, 13, 14, 15, 270, 70_000, 300_000])
def test_sizes_at_the_edges_of_the_format(lz4, size, rng):
    same = bytes(size)
    assert decompress(compress(lz4, same)) == same
    assert len(compress(lz4, same)) < 20 + size // 200
    noise = rng.randbytes(size)
    assert decompress(compress(lz4, noise)) == noise
    far = noise + bytes(70_000) + noise
    assert decompress(compress(lz4, far)) == far
