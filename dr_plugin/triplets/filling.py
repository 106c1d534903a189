"""Triplets drawn from class reservoirs, attempt by attempt."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from dr_plugin.triplets.candidates import (
    BYSTANDER,
    Acceptance,
    Arrivals,
    BufferPicks,
    ByItem,
    Flags,
    Floats,
    Reservoirs,
)
from dr_plugin.triplets.draws import NoTripletError, TripletDraw
from dr_plugin.triplets.relevances import Indices

AT_ONCE = 2**14  # triplets, or attempts at some, that are worked on together
_SINGLE = 16  # candidates that a search asks for one by one; then in ever longer runs
_LONGEST = 256  # such a run
_DOUBTFUL = 64  # candidates after which it is asked whether there is anything to find
_SEARCH = 2**12  # candidates after which a search ends
_REDRAWS = 64  # of a query that is relevant to none
_HOPELESS = 4096  # attempts without a triplet after which a draw gives up


@dataclass(frozen=True)
class Options:
    """Those of `StreamedTriplets` that the attempts follow."""

    margin: float
    max_trials: int
    equal_classes: bool
    exact: bool
    weights: ByItem | None


class Triplets(NamedTuple):
    """Triplets and what it took to draw each, (n,) all: attempts that were discarded, negatives rejected."""

    query: Indices
    positive: Indices
    negative: Indices
    exact: Flags
    rejected: Indices
    discarded: Indices

    @classmethod
    def empty(cls, count: int) -> "Triplets":
        """None drawn yet."""
        query, positive, negative, rejected, discarded = np.zeros((5, count), np.int64)
        return cls(query, positive, negative, np.ones(count, np.bool_), rejected, discarded)

    def cut(self, part: slice, in_class: Flags) -> TripletDraw:
        """Some of them, with their counters."""
        query, positive, negative, exact, rejected, discarded = (array[part] for array in self)
        counters = {
            "accepted": len(query),
            "in_class": int(in_class.sum()),
            "out_of_class": int((~in_class).sum()),
            "rejected": int(rejected.sum()),
            "discarded": int(discarded.sum()),
            "inexact": int((~exact).sum()),
        }
        return TripletDraw(
            torch.from_numpy(query), torch.from_numpy(positive), torch.from_numpy(negative), counters
        )


class Found(NamedTuple):
    """What searches found, (n,) each: the image or -1, its r(q, .), whether exact, and how many failed (8)."""

    item: Indices
    relevance: Floats
    exact: Flags
    rejected: Indices


class Filling:
    """Draws triplets of one kind from the reservoirs as they are."""

    def __init__(
        self,
        reservoirs: Reservoirs,
        accept: Acceptance,
        options: Options,
        source: Arrivals | BufferPicks,
        in_class: bool,
        rng: np.random.Generator,
    ) -> None:
        self._reservoirs, self._accept, self._options = reservoirs, accept, options
        self._source, self._in_class, self._rng = source, in_class, rng
        self._first_run = 1 if options.exact else 8  # unneeded arrivals are lost, picks cost nothing
        self._held, labels = reservoirs.held_all()  # class by class
        self._sizes = np.bincount(labels, minlength=reservoirs.classes)
        self._counts = reservoirs.counts
        self._chances = self._class_chances()

    def fill(self, triplets: Triplets, places: Indices) -> None:
        """Put a triplet in each place."""
        attempts, tried, copies = 0, 0, 1  # for each place, in all, for each place at once
        unfilled = places
        while len(unfilled):
            attempt = self._attempt(len(unfilled) * copies)
            success = (attempt.negative >= 0).reshape(copies, -1)
            done = success.any(axis=0)
            first = np.where(done, success.argmax(axis=0), copies)
            counted = np.arange(copies)[:, None] <= first
            triplets.rejected[unfilled] += (attempt.rejected.reshape(copies, -1) * counted).sum(axis=0)
            triplets.discarded[unfilled] += first
            chosen, filled = (first * len(unfilled) + np.arange(len(unfilled)))[done], unfilled[done]
            triplets.exact[unfilled] &= (attempt.exact.reshape(copies, -1) | ~counted).all(axis=0)
            for into, given in zip(triplets[:3], attempt[:3], strict=True):
                into[filled] = given[chosen]
            attempts, tried = attempts + copies, tried + success.size
            unfilled = unfilled[~done]
            if len(unfilled) == len(places) and tried >= _HOPELESS:
                raise NoTripletError(self._why_hopeless(tried))
            most = max(1, AT_ONCE // max(1, len(unfilled)))
            copies = 1 if attempts == 1 else min(attempts, most)

    def _attempt(self, count: int) -> Triplets:
        """So many attempts at a triplet; the negative is -1 where one failed."""
        labels, query, exact = self._queries(count)
        self._accept.prepare(labels)
        everything = np.full(count, np.inf)
        positive = self._search(labels, query, np.full(count, -1), everything)
        negative = np.full(count, -1)
        rejected = np.zeros(count, np.int64)
        exact &= positive.exact
        going = np.flatnonzero((positive.item >= 0) & self._relevant(query))
        if self._in_class:
            found = self._search(labels[going], query[going], positive.item[going], positive.relevance[going])
            negative[going], rejected[going] = found.item, found.rejected
            exact[going] &= found.exact
        else:
            negative[going] = self._other_classes(labels[going])
        return Triplets(query, positive.item, negative, exact, rejected, np.zeros(count, np.int64))

    def _queries(self, count: int) -> tuple[Indices, Indices, Flags]:
        """Classes, queries, and whether these are exact. A query that is relevant to none is drawn again."""
        labels = self._classes(count)
        query, exact = self._source.take(labels)
        for _ in range(_REDRAWS):
            wrong = np.flatnonzero(~self._relevant(query))
            if len(wrong) == 0:
                break
            if not self._options.equal_classes:
                labels[wrong] = self._classes(len(wrong))
            query[wrong], exact[wrong] = self._source.take(labels[wrong])
        return labels, query, exact

    def _relevant(self, query: Indices) -> Flags:
        if self._options.weights is None:
            return np.ones(len(query), np.bool_)
        relevant: Flags = self._options.weights(query) > BYSTANDER
        return relevant

    def _search(self, labels: Indices, query: Indices, positive: Indices, ceiling: Floats) -> Found:
        """For each query the first accepted candidate whose relevance is below the ceiling by the margin.

        Query and positive themselves are no candidates. Each that is accepted and too relevant counts as rejected.
        """
        count = len(labels)
        result = Found(
            np.full(count, -1), np.zeros(count), np.ones(count, np.bool_), np.zeros(count, np.int64)
        )
        active, seen, run = np.arange(count), 0, self._first_run
        while len(active) and seen < _SEARCH:
            taken, in_time = self._source.take(np.repeat(labels[active], run))
            items, exact = taken.reshape(-1, run), in_time.reshape(-1, run)
            possible = (items != query[active, None]) & (items != positive[active, None])
            accepted, relevance, fits = self._accept(
                labels[active], query[active], items, possible, self._rng
            )
            gap = ceiling[active, None] - relevance
            good = accepted & (gap >= self._options.margin) & (gap > 0)
            hit, first = good.any(axis=1), good.argmax(axis=1)
            before = np.arange(run) < np.where(hit, first, run)[:, None]
            failed = result.rejected[active] + (accepted & before).sum(axis=1)
            over = failed >= self._options.max_trials
            result.rejected[active] = np.minimum(failed, self._options.max_trials)
            result.exact[active] &= (fits | ~before).all(axis=1)
            index = np.flatnonzero(hit & ~over)
            found, column = active[index], first[index]
            result.item[found] = items[index, column]
            result.relevance[found] = relevance[index, column]
            result.exact[found] &= exact[index, column] & fits[index, column]
            result.exact[active[over]] &= exact[over, -1]
            active, seen = active[~(hit | over)], seen + run
            run = min(2 * run, _LONGEST) if seen >= _SINGLE else run
            if _DOUBTFUL <= seen < 2 * _DOUBTFUL:
                active = self._still_possible(active, labels, query, positive, ceiling, result)
        result.exact[active] = False
        return result

    def _still_possible(
        self,
        active: Indices,
        labels: Indices,
        query: Indices,
        positive: Indices,
        ceiling: Floats,
        result: Found,
    ) -> Indices:
        """Those of the active searches that an image which the class holds can end; the others end here."""
        possible = np.zeros(len(active), np.bool_)
        for label in np.unique(labels[active]).tolist():
            here = np.flatnonzero(labels[active] == label)
            place, held = active[here], self._reservoirs.held(label)
            others = (held != query[place, None]) & (held != positive[place, None])
            relevance = self._accept.relevances(query[place], np.tile(held, (len(place), 1)), others)
            gap = ceiling[place, None] - relevance
            others &= self._accept.can_be_accepted(relevance)
            possible[here] = (others & (gap >= self._options.margin) & (gap > 0)).any(axis=1)
            ended = place[~possible[here]]
            result.exact[ended] &= len(held) == self._counts[label]
            must_fail = place[~possible[here] & others.any(axis=1)]
            result.rejected[must_fail] = self._options.max_trials
        return active[possible]

    def _classes(self, count: int) -> Indices:
        ends = np.cumsum(self._chances)
        drawn = np.searchsorted(ends, self._rng.random(count) * ends[-1], side="right")
        classes: Indices = np.minimum(drawn, np.flatnonzero(self._chances)[-1])
        return classes

    def _class_chances(self) -> Floats:
        """(C,) of the query's class, 0 where the class cannot give a triplet of this kind."""
        sizes, totals = self._sizes, self._reservoirs.totals
        possible = (sizes >= (3 if self._in_class else 2)) & (totals > BYSTANDER * np.maximum(sizes, 2**40))
        if not self._in_class:
            possible &= sizes < len(self._held)
        if not possible.any():
            needed = "three images" if self._in_class else "two images, and another class"
            kind = "in-class" if self._in_class else "out-of-class"
            raise NoTripletError(
                f"draw: got {len(self._held)} images of {np.count_nonzero(sizes)} classes in the reservoirs, "
                f"expected a class with {needed} for {kind} negatives: stream more, or change out_of_class_ratio"
            )
        return np.where(possible, 1.0 if self._options.equal_classes else totals, 0.0)

    def _other_classes(self, labels: Indices) -> Indices:
        """For each label an image that another class holds, all with equal chances."""
        own, start = self._sizes[labels], (np.cumsum(self._sizes) - self._sizes)[labels]
        place = self._rng.integers(0, len(self._held) - own)
        images: Indices = self._held[place + (place >= start) * own]
        return images

    def _why_hopeless(self, attempts: int) -> str:
        if self._in_class:
            return (
                f"draw: got no in-class negative in {attempts} attempts, expected some image of the query's class to "
                f"be less relevant than the positive, by {self._options.margin} (relevance_margin): lower it, hold "
                "more images, or set out_of_class_ratio=1 where all relevances are equal"
            )
        return f"draw: got no positive in {attempts} attempts, expected images held to be relevant to one another"
