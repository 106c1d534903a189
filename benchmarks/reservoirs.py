"""Weighted reservoirs on one core: items a second, draws a second, and peak memory of a long stream.

The stream is 14 million items (the paper's size) of 200 classes in chunks, made beforehand; capacity 100 a class.

- heapq: the loop that users write, Efraimidis & Spirakis' A-Res with a heap a class and the standard library.
- datasketches: Apache DataSketches' VarOpt sketch (C++; `pip install datasketches`), one a class, the one well-kept
  library on PyPI that samples a weighted stream in bounded memory. It gives weighted sums of least variance, not
  successive sampling, and takes an item a call. Left out where it is not installed.
- numpy, torch: no streams; they choose one class's sample from all of its weights, which have to be in memory.
"""

import argparse
import heapq
import math
import os
import random
import statistics
from collections.abc import Callable, Iterator

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from _harness import machine_line, paired, peak_memory, table

from dr_plugin.reservoirs import ClassReservoirs, WeightedReservoir

try:
    import datasketches
except ImportError:
    datasketches = None

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


def single(count: int, size: int, capacity: int, method: str) -> None:
    reservoir = WeightedReservoir(capacity, method=method, seed=0)
    for items, _, weights in chunks(count, size, 1):
        reservoir.extend(items, weights)


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


def rates(
    functions: dict[str, tuple[int, Callable[[], object]]], repeats: int
) -> list[tuple[str, int, str, str]]:
    """Rows of name, items, million items a second, and the first one's rate over this one's."""
    seconds = paired({name: function for name, (_, function) in functions.items()}, repeats, warmup=0)
    rate = {name: functions[name][0] / statistics.median(seconds[name]) for name in functions}
    first = next(iter(rate.values()))
    return [
        (name, functions[name][0], f"{rate[name] / 1e6:.2f}", f"{first / rate[name]:.1f}") for name in rate
    ]


def one_class(count: int, capacity: int, repeats: int) -> list[tuple[str, int, str, str]]:
    """One class whose weights are all in memory, which numpy and torch need."""
    weights = np.random.default_rng(0).random(count) + 1e-3
    tensor, generator = torch.from_numpy(weights), np.random.default_rng(0)

    def reservoir(method: str) -> None:
        WeightedReservoir(capacity, method=method, seed=0).extend(np.arange(count), weights)

    functions = {
        "WeightedReservoir a-res": (count, lambda: reservoir("a-res")),
        "WeightedReservoir a-expj": (count, lambda: reservoir("a-expj")),
        "numpy choice(replace=False, p=)": (
            count,
            lambda: generator.choice(count, capacity, replace=False, p=weights / weights.sum()),
        ),
        "torch.multinomial": (count, lambda: torch.multinomial(tensor, capacity)),
    }
    return rates(functions, repeats)


def draws(count: int, reservoirs: ClassReservoirs, repeats: int) -> list[tuple[str, int, str]]:
    """Draws by weight in each way, and how many of the first call were exact."""
    labels = np.random.default_rng(1).integers(0, reservoirs.classes, count)
    exact = reservoirs.draw(labels)[1].mean()
    functions = {
        "draw": lambda: reservoirs.draw(labels),
        "draw_uniform": lambda: reservoirs.draw_uniform(labels),
    }
    seconds = paired(functions, repeats)
    note = {"draw": f"{exact:.1%} of a first call", "draw_uniform": "none"}
    return [(name, count, f"{statistics.median(seconds[name]) * 1e3:.1f}", note[name]) for name in functions]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--items", type=int, default=14_000_000)
    parser.add_argument(
        "--loop-items", type=int, default=1_000_000, help="items for what takes one at a time"
    )
    parser.add_argument("--chunk", type=int, default=100_000)
    parser.add_argument("--classes", type=int, default=200)
    parser.add_argument("--capacity", type=int, default=100)
    parser.add_argument("--draws", type=int, default=100_000)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)

    stream = (options.chunk, options.classes, options.capacity)
    functions: dict[str, tuple[int, Callable[[], object]]] = {
        "ClassReservoirs": (options.items, lambda: ours(options.items, *stream)),
        "heapq loop": (options.loop_items, lambda: heapq_loop(options.loop_items, *stream)),
    }
    if datasketches is not None:
        functions["datasketches VarOpt"] = (options.loop_items, lambda: var_opt(options.loop_items, *stream))
    print(machine_line())
    peak = peak_memory(lambda: ours(options.items, *stream))  # before the rest leaves memory to be used again
    print(f"\nPeak memory of a stream of {options.items} items, its chunks included: {peak / 2**20:.1f} MiB")
    print(f"\n{options.classes} classes, capacity {options.capacity}, chunks of {options.chunk}:")
    header = ["", "items", "million items/s", "first / this"]
    print(table(rates(functions, options.repeats), header))
    print("\nOne class, its weights in memory:")
    print(table(one_class(options.items, options.capacity, options.repeats), header))

    print(f"\nDraws from {options.classes} classes in one call:")
    reservoirs = ours(options.items, *stream)
    print(table(draws(options.draws, reservoirs, options.repeats), ["", "draws", "ms", "exact"]))


if __name__ == "__main__":
    main()
