"""A small recipe of two stages and what its runs have in common, for the tests of faults."""

import json
import resource
from contextlib import contextmanager

import torch

from dr_plugin.experiments import checkpoint

RECIPE = """\
seed: 4
data:
  dataset:
    type: TinyImageNet
    root: {root}
  selection: 2
  image_size: 16
  cache: {cache}
trunk:
  type: DeepRankingTrunk
  convnet:
    type: SmallConvNet
    channels:
      - 8
  embedding_size: 8
stages:
  - name: softmax
    epochs: 2
    batch_size: 8
    optimizer:
      type: SGD
      lr: 0.1
      momentum: 0.9
  - name: ranking
    epochs: 2
    batch_size: 8
    sampler:
      type: MPerClassSampler
      m: 2
    miner:
      type: UniformTripletMiner
      triplets_per_query: 4
    loss:
      type: DeepRankingLoss
    optimizer:
      type: SGD
      lr: 0.05
      momentum: 0.9
evaluation:
  k: 3
report:
  queries: 0
"""
STEPS = 4  # of an epoch


def write_recipe(folder, make_tiny_imagenet):
    """The recipe as a file, beside its data and its cache."""
    root = make_tiny_imagenet(folder / "data", classes=4, train=10, val=3, size=20)
    path = folder / "small.yaml"
    path.write_text(RECIPE.format(root=root, cache=folder / "cache"))
    return path


def course(folder):
    """What a run's journal says, without what the clock put in."""
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in record.items() if k not in ("time_s", "images_per_s")} for record in records]


def assert_same_run(one, two):
    """The same figures, course and weights, to the bit."""
    assert course(one) == course(two)
    metrics = [json.loads((folder / "metrics.json").read_text()) for folder in (one, two)]
    for key in ("val", "train", "selection"):
        assert metrics[0][key] == metrics[1][key]
    for name in ("last.pt", "best.pt"):
        a, b = (checkpoint.load(folder / "checkpoint" / name)["models"]["trunk"] for folder in (one, two))
        assert all(torch.equal(a[key], b[key]) for key in a)
    assert [path.name for path in sorted((two / "checkpoint").iterdir())] == ["best.pt", "last.pt"]
    assert not list(two.rglob("*.partial"))


def flip(path, place=0.5):
    """Change one bit of a file."""
    content = bytearray(path.read_bytes())
    content[int(place * len(content))] ^= 4
    path.write_bytes(content)


@contextmanager
def largest_file(size):
    """The system refuses to let a file grow beyond so many bytes: a full disk that needs no mount and no root."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
