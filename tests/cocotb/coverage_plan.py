"""The functional coverage plan: what is to be seen, what cannot be seen, and what has been.

A plan has groups; ``coverage_plan.toml`` says which. A group is about one kind of transaction and
has *dimensions*, each with some *values*. A *sample* gives each dimension one of its values. A
*cross* is one to three dimensions, and every combination of their values is a *bin* of it: each
dimension alone is a cross, so is each pair of them, and so are the triples that the plan names.

An *exclusion* is a combination of values that no sample can have, with the reason. A bin is
unreachable if the exclusions leave no sample that would hit it; z3 finds that out, and which
exclusions it takes, so the plan states each fact once. A sample that contradicts an exclusion is
an error of the plan or of the hardware.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations, product
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import z3

__all__ = ["PLAN", "Contradiction", "Coverage", "Cross", "Exclusion", "Group", "read_plan"]

PLAN = Path(__file__).with_name("coverage_plan.toml")

Samples = npt.NDArray[np.uint8]
"""One row for each sample: for each dimension the number of its value."""

Why = tuple[int, ...]
"""The exclusions, by number, that together make a bin unreachable."""


class PlanError(Exception):
    """The plan makes no sense; the text says where."""


class Contradiction(Exception):
    """A sample has what an exclusion says no sample can have."""


@dataclass(frozen=True)
class Exclusion:
    """A combination of values that no sample has.

    Attributes
    ----------
    where
        For some dimensions a set of values; a sample that has one of the values in each of them
        cannot be.
    reason : str
        Why not.
    """

    where: Mapping[str, frozenset[str]]
    reason: str

    def __str__(self) -> str:
        return " and ".join(f"{name}: {' '.join(sorted(of))}" for name, of in self.where.items())


@dataclass(frozen=True)
class Cross:
    """Dimensions of which every combination of values is a bin."""

    dimensions: tuple[str, ...]
    name: str = ""
    """Of a triple."""

    def __str__(self) -> str:
        return self.name or ", ".join(self.dimensions)


@dataclass(frozen=True)
class Group:
    """A part of the plan: one kind of transaction."""

    name: str
    title: str
    dimensions: Mapping[str, tuple[str, ...]]
    descriptions: Mapping[str, str]
    """Of each dimension."""
    triples: tuple[Cross, ...]
    exclusions: tuple[Exclusion, ...]

    @cached_property
    def crosses(self) -> tuple[Cross, ...]:
        """Singles, pairs and triples."""
        names = list(self.dimensions)
        singles = [Cross((name,)) for name in names]
        return (*singles, *(Cross(pair) for pair in combinations(names, 2)), *self.triples)

    def shape(self, cross: Cross) -> tuple[int, ...]:
        """Number of values of each dimension of a cross."""
        return tuple(len(self.dimensions[name]) for name in cross.dimensions)

    def bins(self, cross: Cross) -> Iterator[tuple[tuple[int, ...], tuple[str, ...]]]:
        """Place and values of each bin of a cross."""
        values = [self.dimensions[name] for name in cross.dimensions]
        return zip(np.ndindex(self.shape(cross)), product(*values), strict=True)

    def encode(self, values: Mapping[str, str]) -> list[int]:
        """A sample as a row of :data:`Samples`; all dimensions must be given."""
        if values.keys() != self.dimensions.keys():
            raise PlanError(f"{self.name}: {list(values)} are not {list(self.dimensions)}")
        return [known.index(values[name]) for name, known in self.dimensions.items()]

    def refuted(self, exclusion: Exclusion, samples: Samples) -> npt.NDArray[np.bool_]:
        """Which samples have what the exclusion says that no sample has?"""
        names = list(self.dimensions)
        found = np.ones(len(samples), dtype=bool)
        for name, values in exclusion.where.items():
            numbers = [self.dimensions[name].index(value) for value in values]
            found &= np.isin(samples[:, names.index(name)], numbers)
        return found

    @cached_property
    def unreachable(self) -> dict[Cross, dict[tuple[int, ...], Why]]:
        """The bins of each cross that the exclusions leave no sample for, and by which of them."""
        has = {
            name: [z3.Bool(f"{name}={value}") for value in values]
            for name, values in self.dimensions.items()
        }
        holds = [z3.Bool(f"exclusion {number}") for number in range(len(self.exclusions))]
        solver = z3.SolverFor("QF_FD")
        solver.set("core.minimize", True)
        for choices in has.values():
            solver.add(z3.PbEq([(choice, 1) for choice in choices], 1))
        for hold, exclusion in zip(holds, self.exclusions, strict=True):
            others = [
                z3.Not(z3.Or([has[name][self.dimensions[name].index(v)] for v in values]))
                for name, values in exclusion.where.items()
            ]
            solver.add(z3.Implies(hold, z3.Or(others)))
        reached = {cross: np.zeros(self.shape(cross), dtype=bool) for cross in self.crosses}
        found: dict[Cross, dict[tuple[int, ...], Why]] = {}
        for cross in self.crosses:
            found[cross] = {}
            for place, _ in self.bins(cross):
                if reached[cross][place]:
                    continue
                why = self._inherited(found, cross, place)
                if why is None:
                    wanted = [has[name][n] for name, n in zip(cross.dimensions, place, strict=True)]
                    if solver.check(*wanted, *holds) == z3.sat:
                        self._mark(reached, solver.model(), has)
                        continue
                    core = {str(literal) for literal in solver.unsat_core()}
                    why = tuple(n for n, hold in enumerate(holds) if str(hold) in core)
                found[cross][place] = why
        return found

    def _mark(self, reached: dict[Cross, Any], model: z3.ModelRef, has: dict[str, list]) -> None:
        """A sample that is possible reaches a bin of every cross."""
        sample = {
            name: next(n for n, choice in enumerate(choices) if model[choice])
            for name, choices in has.items()
        }
        for cross, bins in reached.items():
            bins[tuple(sample[name] for name in cross.dimensions)] = True

    @staticmethod
    def _inherited(
        found: dict[Cross, dict[tuple[int, ...], Why]], cross: Cross, place: tuple[int, ...]
    ) -> Why | None:
        """Why two of three values exclude each other, if they do."""
        if len(place) < 3:
            return None
        named = dict(zip(cross.dimensions, place, strict=True))
        for pair, bins in found.items():
            if len(pair.dimensions) == 2 and named.keys() >= set(pair.dimensions):
                why = bins.get(tuple(named[name] for name in pair.dimensions))
                if why is not None:
                    return why
        return None


def read_plan(path: Path = PLAN) -> dict[str, Group]:
    """The groups of a plan, by name.

    Raises
    ------
    PlanError
        A dimension or a value is not known, or an exclusion has no reason.
    """
    with path.open("rb") as file:
        return {name: _group(name, table) for name, table in tomllib.load(file).items()}


def _group(name: str, table: Mapping[str, Any]) -> Group:
    dimensions = {key: tuple(text["values"].split()) for key, text in table["dimension"].items()}
    descriptions = {key: text["about"] for key, text in table["dimension"].items()}
    triples = []
    for key, text in table.get("triple", {}).items():
        names = tuple(text.split())
        if len(names) != 3 or not dimensions.keys() >= set(names):
            raise PlanError(f"{name}: {text!r} are not three dimensions of the group")
        triples.append(Cross(names, key))
    exclusions = []
    for entry in table.get("exclude", ()):
        reason = entry["reason"].strip()
        where = {
            key: _values(name, dimensions, key, text)
            for key, text in entry.items()
            if key != "reason"
        }
        if not reason or not where:
            raise PlanError(f"{name}: an exclusion needs values and a reason: {entry}")
        exclusions.append(Exclusion(where, reason))
    title = table["title"]
    return Group(name, title, dimensions, descriptions, tuple(triples), tuple(exclusions))


def _values(
    group: str, dimensions: Mapping[str, tuple[str, ...]], name: str, text: str
) -> frozenset[str]:
    """The values that a text lists; all others if it begins with a ``!``."""
    if name not in dimensions:
        raise PlanError(f"{group} has no dimension {name!r}")
    listed = frozenset(text.removeprefix("!").split())
    known = frozenset(dimensions[name])
    if not listed or not listed <= known:
        raise PlanError(f"{group}: {name} has no values {sorted(listed - known)}: {text!r}")
    return known - listed if text.startswith("!") else listed


class Coverage:
    """How often each bin of a group has been hit.

    Parameters
    ----------
    group : Group
        Part of the plan.
    samples
        What has been seen.

    Raises
    ------
    Contradiction
        A sample has what an exclusion says that no sample has.
    """

    def __init__(self, group: Group, samples: Samples) -> None:
        self.group = group
        self.samples = len(samples)
        for exclusion in group.exclusions:
            found = group.refuted(exclusion, samples)
            if found.any():
                row = samples[int(found.argmax())]
                named = zip(group.dimensions.items(), row.tolist(), strict=True)
                sample = ", ".join(f"{name} {values[number]}" for (name, values), number in named)
                raise Contradiction(
                    f"{group.name}: {found.sum()} samples have {exclusion}, which cannot be: "
                    f"{exclusion.reason} One of them: {sample}"
                )
        names = list(group.dimensions)
        self.hits: dict[Cross, npt.NDArray[np.int64]] = {}
        for cross in group.crosses:
            shape = group.shape(cross)
            columns = [samples[:, names.index(name)].astype(np.int64) for name in cross.dimensions]
            places = np.ravel_multi_index(columns, shape)
            self.hits[cross] = np.bincount(places, minlength=int(np.prod(shape))).reshape(shape)

    def reachable(self, crosses: Sequence[Cross] | None = None) -> int:
        """Number of bins that can be hit."""
        chosen = self.group.crosses if crosses is None else crosses
        return sum(self.hits[cross].size - len(self.group.unreachable[cross]) for cross in chosen)

    def missing(
        self, crosses: Sequence[Cross] | None = None
    ) -> list[tuple[Cross, tuple[str, ...]]]:
        """The bins that can be hit and have not been."""
        chosen = self.group.crosses if crosses is None else crosses
        return [
            (cross, values)
            for cross in chosen
            for place, values in self.group.bins(cross)
            if not self.hits[cross][place] and place not in self.group.unreachable[cross]
        ]
