"""Fuzzes the reader of operation streams: what a file holds is read, or refused in one line.

    python tests/fuzz/fuzz_ops.py [--seconds N] [--seed N] [FILE ...]

Files are mutated from a valid stream in each form: as bytes, and below the compression, so that
checksums hold and damage reaches what lies beneath. With atheris, if it is installed, coverage
guides the choice; without it, chance does. What fails is kept in ``build/fuzz/``; files that are
named are tried as they are.
"""

import argparse
import gzip
import hashlib
import io
import random
import sys
import tempfile
import time
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

try:
    import atheris
except ImportError:
    atheris = None

with atheris.instrument_imports(include=["emte.sim.ops"]) if atheris else nullcontext():
    from emte.sim import model, ops

BUILD = Path(__file__).parents[2] / "build" / "fuzz"
ENDINGS = ("jsonl", "jsonl.gz", "npz")
LIMIT = 1 << 16
"""Bytes of a file, at most."""

LINES = b"""\
{"op":"regime","tbi":[1,0],"mtx":[0,1],"tcma":[0,0],"ata":[1,1],"tcf":["sync","asym"],"gmid_bs":4}
{"op":"map","address":"0x10000","bytes":4096,"memory":"tagged"}
{"op":"storage","address":0,"bytes":"0x10000000000","base":"0x10000000000"}
{"op":"gcr","exclude":"0x8001","rrnd":0}
{"op":"rgsr","tag":3,"seed":44257}
{"op":"stg","address":"0x10000","tag":5}
{"op":"st2g","address":"0x10010","tag":5,"gap":7,"pc":"0x400000"}
{"op":"stgm","address":"0x10100","tags":"0xfedcba9876543210","el":1}
{"op":"ldgm","address":"0x10100","el":1}
{"op":"dc_gva","address":"0x0500000000010200"}
{"op":"irg","address":"0x10000","exclude":1,"entropy":"0x80000000"}
{"op":"addg","address":"0x10000","offset":16,"tag_offset":1}
{"op":"gmi","address":"0x10000","mask":0}
{"op":"branch","id":0}
{"op":"load","address":"0x0500000000010008","size":16,"branches":[0]}
{"op":"ldg","address":"0x10000","branches":[0]}
{"op":"resolve","id":0,"mispredicted":1}
{"op":"store","address":"0x050000000001001f","size":64,"exempt":0,"tco":0,"el":1}
{"op":"dc_zva","address":"0x0500000000010000"}
{"op":"clean"}
"""
COLUMNAR = ("regime", "map", "stg", "st2g", "dc_gva", "branch", "load", "ldg", "resolve", "store")

TOKENS = (
    *(b'"', b"{", b"}", b"[", b"]", b",", b":", b"\n", b"\r\n", b"\x00", b"\xff", b"\xc3\xa9"),
    *(b"null", b"true", b"-1", b"1e9", b"NaN", b"Infinity", b"0x", b'"0x1"', b"1" * 50, b"[" * 99),
    *(b'"op":"load"', b'"op":"storage"', b'"branches":[7]', b'"memory":"none"', b'"\\ud800"'),
    *(b"<u8", b"|u1", b"|O", b">i4", b"<f8", b"<U9", b"'shape': (", b"(3, 7)", b"True", b"False"),
    *(b"\x93NUMPY", b"PK\x03\x04", b"PK\x05\x06", b"\x1f\x8b", b"op_names.npy", b"regimes.npy"),
    *(b"\x01\x00\x00\x00", b"\xff\xff\xff\xff\xff\xff\xff\x7f"),
)


class Failure(AssertionError):
    """The reader, or what relies on it, did what it must not do."""


# ---- The target ----------------------------------------------------------------------------------


def examine(path: Path) -> bool:
    """Is the stream accepted? What was accepted must also be of use.

    Raises
    ------
    Exception
        The reader raised anything but a StreamError of one line, the stream changes when it is
        written and read again, or the model cannot perform it.
    """
    try:
        stream = ops.read(path)
        operations = list(stream)
    except ops.StreamError as refusal:
        _expect_line(refusal)
        return False
    if len(operations) != len(stream):
        raise Failure(f"{len(operations)} operations in a stream of {len(stream)}")
    copy = path.with_name("copy.jsonl")
    ops.write(copy, operations)
    if list(ops.read(copy)) != operations:
        raise Failure("the stream is another one after it was written")
    try:
        ops.check(stream)
    except ops.StreamError as refusal:
        _expect_line(refusal)
        return True
    if sum(1 for _ in model.run(stream)) != len(stream):
        raise Failure("the model has not one outcome for each operation")
    return True


def _expect_line(refusal: ops.StreamError) -> None:
    text = str(refusal)
    if not text or not text.isprintable():
        raise Failure(f"the error is not one line: {text!r}")


def try_bytes(ending: str, data: bytes) -> bool:
    """:func:`examine` a file of these bytes; one that fails is kept."""
    with tempfile.TemporaryDirectory(prefix="emte-fuzz-") as folder:
        path = Path(folder) / f"stream.{ending}"
        path.write_bytes(data)
        try:
            return examine(path)
        except BaseException as error:
            BUILD.mkdir(parents=True, exist_ok=True)
            kept = BUILD / f"{hashlib.sha1(data).hexdigest()[:12]}.{ending}"
            kept.write_bytes(data)
            error.add_note(f"kept as {kept}")
            raise


# ---- Mutations -----------------------------------------------------------------------------------


def seeds() -> dict[str, bytes]:
    """A valid file of each form."""
    with tempfile.TemporaryDirectory(prefix="emte-fuzz-") as folder:
        text, columns = Path(folder) / "seed.jsonl", Path(folder) / "seed.npz"
        text.write_bytes(LINES)
        ops.write(columns, [each for each in ops.read(text) if each.op in COLUMNAR])
        return {"jsonl": LINES, "jsonl.gz": gzip.compress(LINES), "npz": columns.read_bytes()}


def mutate(rng: random.Random, ending: str, data: bytes) -> bytes:
    """A variant of a file."""
    if ending != "jsonl" and rng.random() < 0.8:
        try:
            text = gzip.decompress(data) if ending == "jsonl.gz" else _members(data)
        except Exception:  # what is damaged already can only be mutated as it is
            return _mutate_bytes(rng, data)
        if isinstance(text, bytes):
            return gzip.compress(_mutate_bytes(rng, text))
        return _zip(_mutate_members(rng, text))
    return _mutate_bytes(rng, data)


def _mutate_bytes(rng: random.Random, data: bytes) -> bytes:
    """Some changes to one or a few places."""
    result = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 4, 8))):
        at = rng.randrange(len(result) + 1)
        length = rng.choice((1, 1, 2, 8, rng.randrange(1, 200)))
        match rng.randrange(6):
            case 0:
                result[at : at + 1] = bytes([rng.randrange(256)])
            case 1:
                del result[at : at + length]
            case 2:
                result[at:at] = rng.choice(TOKENS)
            case 3:
                token = rng.choice(TOKENS)
                result[at : at + len(token)] = token
            case 4:
                source = rng.randrange(len(result) + 1)
                result[at:at] = result[source : source + length]
            case 5:
                # Another digit where there is one, which mostly leaves the form as it was.
                digits = [
                    n for n in range(at, min(at + 40, len(result))) if result[n : n + 1].isdigit()
                ]
                if digits:
                    result[digits[0]] = rng.choice(b"0123456789abcdef")
    return bytes(result[:LIMIT])


def _members(data: bytes) -> list[tuple[str, bytes]]:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return [(name, archive.read(name)) for name in archive.namelist()]


def _mutate_members(
    rng: random.Random, members: list[tuple[str, bytes]]
) -> list[tuple[str, bytes]]:
    """Change, drop, double or rename one of the arrays."""
    if not members:
        return members
    members = list(members)
    at = rng.randrange(len(members))
    name, data = members[at]
    match rng.randrange(8):
        case 0:
            del members[at]
        case 1:
            members.append((rng.choice(members)[0], data))
        case 2:
            members[at] = (rng.choice(("insn.npy", "pcs.npy", "a/b", "op", "\u00e9.npy")), data)
        case _:
            members[at] = (name, _mutate_bytes(rng, data))
    return members


def _zip(members: list[tuple[str, bytes]]) -> bytes:
    """An archive whose checksums are right; one name may come twice."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "Duplicate name")
                archive.writestr(name or "nameless", data)
    return file.getvalue()


# ---- Running -------------------------------------------------------------------------------------


def by_chance(rng: random.Random, go_on: Callable[[int], bool]) -> Counter[tuple[str, bool]]:
    """Try mutants while ``go_on`` says so, given their number; how many were accepted and not."""
    pools = {ending: [data] for ending, data in seeds().items()}
    counts: Counter[tuple[str, bool]] = Counter()
    while go_on(counts.total()):
        ending = ENDINGS[counts.total() % len(ENDINGS)]
        data = mutate(rng, ending, rng.choice(pools[ending]))
        accepted = try_bytes(ending, data)
        counts[ending, accepted] += 1
        if accepted:  # mutants of mutants go further; the seed itself is never lost
            pools[ending] = [*pools[ending][:1], *pools[ending][1:][-20:], data]
    return counts


def by_coverage(seconds: int, seed: int) -> None:
    """Let atheris choose; it ends the process. An input is the number of an ending, then a file."""

    def try_input(data: bytes) -> None:
        if data:
            try_bytes(ENDINGS[data[0] % len(ENDINGS)], data[1:])

    def mutate_input(data: bytes, limit: int, number: int) -> bytes:
        first = data[0] if data else 0
        mutant = mutate(random.Random(number), ENDINGS[first % len(ENDINGS)], bytes(data[1:]))
        return bytes([first]) + mutant[: limit - 1]

    BUILD.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="emte-fuzz-") as corpus:
        for number, data in enumerate(seeds().values()):
            (Path(corpus) / str(number)).write_bytes(bytes([number]) + data)
        options = [f"-max_total_time={seconds}", f"-seed={seed}", f"-max_len={LIMIT}"]
        options += [f"-artifact_prefix={BUILD}/", "-print_final_stats=1"]
        atheris.Setup([sys.argv[0], *options, corpus], try_input, custom_mutator=mutate_input)
        atheris.Fuzz()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 31))
    parser.add_argument("files", nargs="*", type=Path, metavar="FILE")
    arguments = parser.parse_args()
    warnings.simplefilter("error")  # as in the other tests
    if arguments.files:
        for path in arguments.files:
            ending = path.name.partition(".")[2]
            print(f"{path}: {'accepted' if try_bytes(ending, path.read_bytes()) else 'refused'}")
        return
    print(f"seed {arguments.seed}, {'atheris' if atheris else 'by chance'}", flush=True)
    if atheris:
        by_coverage(arguments.seconds, arguments.seed)
    end = time.monotonic() + arguments.seconds
    counts = by_chance(random.Random(arguments.seed), lambda _: time.monotonic() < end)
    for ending in ENDINGS:
        print(f".{ending}: {counts[ending, True]} accepted, {counts[ending, False]} refused")


if __name__ == "__main__":
    main()
