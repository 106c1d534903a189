"""Functions run on several processes that train together, over gloo."""

import multiprocessing
import os
import pickle
import sys
import tempfile
import traceback
from pathlib import Path

import torch
import torch.distributed as dist

ROOT = str(Path(__file__).parents[1])
_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["dr_plugin.experiments.run", "dr_plugin.miners", "dr_plugin.datasets"])
_LIMIT_S = 300  # after which processes that wait for one another are taken for dead


def on_ranks(count, function, *arguments):
    """What ``function(*arguments)`` gives on each of ``count`` processes, in rank order; AssertionError if one fails.

    The processes are forks of one that has imported torch, so they start at once. ``function`` must be importable.
    """
    path, sys.path = sys.path, [*sys.path, ROOT]  # a process finds the test's module where its parent would
    with tempfile.TemporaryDirectory() as folder:
        started = []
        try:
            for rank in range(count):
                here, there = _CONTEXT.Pipe(duplex=False)
                process = _CONTEXT.Process(
                    target=_work, args=(rank, count, f"{folder}/meeting", there, function, arguments)
                )
                process.start()
                there.close()
                started.append((process, here))
            return [_answer(rank, here) for rank, (_, here) in enumerate(started)]
        finally:
            sys.path = path
            for process, here in started:
                process.kill()
                process.join()
                here.close()


def _answer(rank, here):
    assert here.poll(_LIMIT_S), f"rank {rank} gave no answer: do the processes wait for one another?"
    try:
        good, value = pickle.loads(here.recv_bytes())
    except EOFError:
        raise AssertionError(f"rank {rank} died") from None
    assert good, f"rank {rank}:\n{value}"
    return value


def _work(rank, count, meeting, there, function, arguments):
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(count))
    torch.set_num_threads(1)
    try:
        dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=count)
        answer = (True, function(*arguments))
    except BaseException:
        answer = (False, traceback.format_exc())
    # send() would share the memory of tensors with a process that is gone.
    there.send_bytes(pickle.dumps(answer))
