"""Weighted reservoirs: items a second of a long stream, against loops and against a choice among all weights; draws.

The stream is 14 million items (the paper's size) of C classes in chunks, made beforehand; capacity 100 a class. One
thread.

- heapq: the loop that users write, Efraimidis & Spirakis' A-Res with a heap a class and the standard library.
- datasketches: Apache DataSketches' VarOpt sketch (C++; `pip install datasketches`), one a class, the one well-kept
  library on PyPI that samples a weighted stream in bounded memory. It gives weighted sums of least variance, not
  successive sampling, and takes an item a call. Left out where it is not installed.
- numpy, torch: no streams; they choose one class's sample from all of its weights, which have to be in memory. A draw
  by weight is numpy's choice among all weights of the class, which the reservoirs do not hold.
"""

import heapq
import math
import random
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from _cases import Case, Sides
from _harness import peak_memory
from _tables import alone

from dr_plugin.reservoirs import ClassReservoirs, WeightedReservoir

try:
    import datasketches
except ImportError:
    datasketches = None

FULL = {
    "items": 14_000_000,
    "loop_items": 1_000_000,  # for what takes one at a time
    "chunk": 100_000,
    "classes": 200,
    "capacity": 100,
    "draws": 100_000,
    "loop_draws": 500,  # one at a time
    "item_curve": [30_000, 100_000, 300_000, 1_000_000],
    "class_curve": [10, 100, 1000, 10_000],
    "draw_curve": [1000, 10_000, 100_000],
    "draw_item_curve": [10_000, 30_000, 100_000],
    "draw_class_curve": [10, 100, 1000],
}
QUICK = {
    "items": 2_000,
    "loop_items": 500,
    "chunk": 100,
    "classes": 4,
    "capacity": 10,
    "draws": 100,
    "loop_draws": 10,
    "item_curve": [100, 200, 400],
    "class_curve": [2, 4, 8],
    "draw_curve": [50, 100, 200],
    "draw_item_curve": [100, 200, 400],
    "draw_class_curve": [2, 4, 8],
}

Chunk = tuple[np.ndarray, np.ndarray, np.ndarray]


def chunks(count: int, size: int, classes: int) -> Iterator[Chunk]:
    """One chunk's labels and weights again and again, under new item numbers: a stream that costs no time."""
    rng = np.random.default_rng(0)
    labels, weights = rng.integers(0, classes, size), rng.random(size) + 1e-3
    items = np.arange(size)
    for start in range(0, count, size):
        yield items + start, labels, weights


def ours(count: int, size: int, classes: int, capacity: int) -> ClassReservoirs:
    reservoirs = ClassReservoirs(capacity, classes, seed=0)
    for chunk in chunks(count, size, classes):
        reservoirs.extend(*chunk)
    return reservoirs


def heapq_loop(count: int, size: int, classes: int, capacity: int) -> None:
    uniform, log = random.Random(0).random, math.log
    heaps: list[list[tuple[float, int]]] = [[] for _ in range(classes)]
    for chunk in chunks(count, size, classes):
        for item, label, weight in zip(*(part.tolist() for part in chunk), strict=True):
            key, heap = log(1.0 - uniform()) / weight, heaps[label]
            if len(heap) < capacity:
                heapq.heappush(heap, (key, item))
            elif key > heap[0][0]:
                heapq.heapreplace(heap, (key, item))


def var_opt(count: int, size: int, classes: int, capacity: int) -> None:
    sketches = [datasketches.var_opt_sketch(capacity) for _ in range(classes)]
    for chunk in chunks(count, size, classes):
        for item, label, weight in zip(*(part.tolist() for part in chunk), strict=True):
            sketches[label].update(item, weight)


LOOPS: dict[str, Callable[[int, int, int, int], None]] = {"a loop with heapq": heapq_loop}
if datasketches is not None:
    LOOPS["datasketches VarOpt"] = var_opt


def stream_sides(
    loop: str,
    *,
    N: int,
    chunk: int,
    C: int,
    capacity: int,
    device: torch.device,
    loop_items: int | None = None,
) -> Sides:
    """A whole stream; with `loop_items`, the loop takes only so many of them, and an item is the unit."""
    count, size = N if loop_items is None else loop_items, min(chunk, N)
    functions = partial(ours, N, size, C, capacity), partial(LOOPS[loop], count, size, C, capacity)
    return Sides(*functions, (1, 1) if loop_items is None else (N, count))


def one_class_sides(method: str, against: str, *, N: int, capacity: int, device: torch.device) -> Sides:
    """One class whose weights are all in memory, which numpy and torch need."""
    weights = np.random.default_rng(0).random(N) + 1e-3
    tensor, generator = torch.from_numpy(weights), np.random.default_rng(0)

    def reservoir() -> None:
        WeightedReservoir(capacity, method=method, seed=0).extend(np.arange(N), weights)

    def choice() -> object:
        return generator.choice(N, capacity, replace=False, p=weights / weights.sum())

    theirs = choice if against == "numpy" else partial(torch.multinomial, tensor, capacity)
    return Sides(reservoir, theirs, (N, N))


def draw_sides(
    way: str, *, draws: int, N: int, C: int, capacity: int, device: torch.device, loop_draws: int
) -> Sides:
    """Draws from the classes' reservoirs in one call, and one by one from all weights of the class."""
    labels = np.random.default_rng(1).integers(0, C, draws)
    reservoirs = ours(N, N, C, capacity)
    items, classes, weights = next(chunks(N, N, C))
    members = [(items[classes == label], weights[classes == label]) for label in range(C)]
    chances = [(held, weight / weight.sum()) for held, weight in members]
    generator = np.random.default_rng(2)

    def choices() -> None:
        for label in labels[:loop_draws]:
            held, chance = chances[label]
            generator.choice(held, p=chance if way == "draw" else None)

    return Sides(partial(getattr(reservoirs, way), labels), choices, (draws, loop_draws))


def cases(
    *,
    items: int,
    loop_items: int,
    chunk: int,
    classes: int,
    capacity: int,
    draws: int,
    loop_draws: int,
    item_curve: list[int],
    class_curve: list[int],
    draw_curve: list[int],
    draw_item_curve: list[int],
    draw_class_curve: list[int],
) -> list[Case]:
    sizes = {"N": items, "chunk": chunk, "C": classes, "capacity": capacity}

    def case(what: str, against: str, make: Callable[..., Sides], sizes: dict[str, int], unit: str) -> Case:
        return Case("reservoirs", what, against, make, sizes, unit=unit, threads=1)

    extend = "ClassReservoirs.extend"
    found = [
        case(extend, name, partial(stream_sides, name, loop_items=loop_items), sizes, "item")
        for name in LOOPS
    ]
    alone_sizes = {"N": items, "capacity": capacity}
    choices = {"numpy": "numpy choice(replace=False, p=)", "torch": "torch.multinomial"}
    for method in ("a-res", "a-expj"):
        for against, name in choices.items():
            make = partial(one_class_sides, method, against)
            found.append(case(f"WeightedReservoir, {method}, one class", name, make, alone_sizes, "item"))
    drawn = {"draws": draws, "N": chunk, "C": classes, "capacity": capacity}
    draws_by = [
        case(f"ClassReservoirs.{way}", name, partial(draw_sides, way, loop_draws=loop_draws), drawn, "draw")
        for way, name in (
            ("draw", "numpy choice(p=), one by one"),
            ("draw_uniform", "numpy choice, one by one"),
        )
    ]
    heap = next(iter(LOOPS))
    growing = case(extend, heap, partial(stream_sides, heap), {**sizes, "N": item_curve[-1]}, "stream")
    curves = growing.curve("N", item_curve) + growing.curve("C", class_curve)
    for along, values in (("draws", draw_curve), ("N", draw_item_curve), ("C", draw_class_curve)):
        curves += draws_by[0].curve(along, values)
    return found + draws_by + curves


def extras(sizes: dict[str, Any]) -> None:
    """What is no ratio: the memory of a long stream, and how many draws are exact."""
    stream = (sizes["chunk"], sizes["classes"], sizes["capacity"])
    peak = peak_memory(lambda: ours(sizes["items"], *stream))
    print(
        f"\nPeak memory of a stream of {sizes['items']:,} items, its chunks included: {peak / 2**20:.1f} MiB"
    )
    labels = np.random.default_rng(1).integers(0, sizes["classes"], sizes["draws"])
    exact = ours(sizes["items"], *stream).draw(labels)[1].mean()
    print(f"Of a first {sizes['draws']:,} draws by weight {exact:.1%} are exact.")


if __name__ == "__main__":
    torch.set_num_threads(1)
    extras(alone(__doc__, cases, FULL, QUICK))
