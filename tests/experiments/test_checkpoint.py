import pickle
import random
from contextlib import suppress

import numpy as np
import pytest
import torch
from pytorch_metric_learning import losses, miners
from pytorch_metric_learning.losses import ContrastiveLoss, CrossBatchMemory

from dr_plugin.atomic import replacing, write_json
from dr_plugin.experiments import checkpoint

CPU = torch.device("cpu")


def test_save_and_load_round_trip(tmp_path):
    state = {"models": {"trunk": {"w": torch.arange(3.0)}}, "steps": 7, "best": None, "names": ["a"]}
    checkpoint.save(tmp_path / "deep" / "last.pt", state)
    loaded = checkpoint.load(tmp_path / "deep" / "last.pt")
    assert loaded["steps"] == 7
    assert loaded["format"] == checkpoint.FORMAT
    assert torch.equal(loaded["models"]["trunk"]["w"], torch.arange(3.0))
    assert [file.name for file in (tmp_path / "deep").iterdir()] == ["last.pt"]


def test_save_that_fails_keeps_the_old_file(tmp_path):
    path = tmp_path / "last.pt"
    checkpoint.save(path, {"steps": 1})
    with pytest.raises((AttributeError, TypeError, pickle.PicklingError)):
        checkpoint.save(path, {"steps": lambda: None})
    assert checkpoint.load(path)["steps"] == 1
    assert [file.name for file in tmp_path.iterdir()] == ["last.pt"]


class Exploit:
    def __reduce__(self):
        return (pytest.fail, ("the pickle ran",))


@pytest.mark.parametrize("kind", ["missing", "empty", "text", "truncated", "hostile", "list", "other format"])
def test_load_refuses_what_is_no_checkpoint(tmp_path, kind):
    path = tmp_path / "last.pt"
    if kind == "empty":
        path.write_bytes(b"")
    elif kind == "text":
        path.write_text("hello\n")
    elif kind == "truncated":
        checkpoint.save(path, {"w": torch.zeros(1000)})
        path.write_bytes(path.read_bytes()[:-500])
    elif kind == "hostile":
        torch.save({"format": 1, "x": Exploit()}, path)
    elif kind == "list":
        torch.save([1], path)
    elif kind == "other format":
        torch.save({"format": 99}, path)
    with pytest.raises(
        ValueError, match=r"last\.pt: (no checkpoint here|not a readable|got checkpoint format)"
    ) as error:
        checkpoint.load(path)
    assert "\n" not in str(error.value)


def test_generators_state_restores_all_three():
    checkpoint.seed_everything(5)
    random.gauss(0, 1)
    np.random.standard_normal()  # noqa: NPY002 - leaves a cached value, which belongs to the state
    state = checkpoint.generators_state(CPU)

    def draws():
        return (
            random.gauss(0, 1),
            random.random(),
            np.random.standard_normal(3).tolist(),  # noqa: NPY002
            torch.rand(3).tolist(),
        )

    first = draws()
    assert draws() != first
    checkpoint.restore_generators(state, CPU)
    assert draws() == first


def test_generators_state_loads_without_pickle(tmp_path):
    checkpoint.save(tmp_path / "g.pt", checkpoint.generators_state(CPU))
    checkpoint.restore_generators(checkpoint.load(tmp_path / "g.pt"), CPU)
    assert torch.equal(torch.get_rng_state(), checkpoint.generators_state(CPU)["torch"])


def is_module(kind):
    return isinstance(kind, type) and issubclass(kind, torch.nn.Module)


def pml_parts():
    """PML's losses and miners by name, those that can be made from the sizes of what they will see."""
    sizes = {"num_classes": 3, "embedding_size": 4}
    for family in (losses, miners):
        for name, kind in vars(family).items():
            for settings in ({}, sizes) if is_module(kind) else ():
                with suppress(TypeError, KeyError):
                    yield name, kind(**settings)
                    break


@pytest.mark.filterwarnings("ignore")  # PML's own, of its defaults and of numpy
def test_state_of_every_loss_and_miner_of_pml_loads_again(tmp_path):
    seen = []
    for name, part in pml_parts():
        state = checkpoint.module_state(part)
        checkpoint.save(tmp_path / "m.pt", state)
        loaded = checkpoint.load(tmp_path / "m.pt")
        assert repr(loaded["attributes"]) == repr(state["attributes"]), name
        checkpoint.load_module_state(part, loaded)
        seen.append(name)
    # The first has a numpy number.
    assert {"ArcFaceLoss", "ProxyAnchorLoss", "MultiSimilarityMiner"} <= set(seen)
    assert len(seen) > 30


def test_module_state_keeps_the_queue_that_pml_forgets(tmp_path):
    def memory():
        return CrossBatchMemory(ContrastiveLoss(), embedding_size=4, memory_size=8)

    one, two = memory(), memory()
    one(torch.randn(6, 4), torch.arange(6) % 2)
    checkpoint.save(tmp_path / "m.pt", checkpoint.module_state(one))
    checkpoint.load_module_state(two, checkpoint.load(tmp_path / "m.pt"))
    embeddings, labels = torch.randn(6, 4), torch.arange(6) % 2
    assert two.queue_idx == one.queue_idx == 6
    assert torch.equal(one(embeddings, labels), two(embeddings, labels))
    assert two.has_been_filled
    assert torch.equal(one.embedding_memory, two.embedding_memory)


def test_replacing_leaves_the_old_file_when_the_block_fails(tmp_path):
    write_json(tmp_path / "a.json", {"x": 1})
    before = (tmp_path / "a.json").read_bytes()
    with pytest.raises(RuntimeError, match="stop"), replacing(tmp_path / "a.json") as file:
        file.write(b"half")
        raise RuntimeError("stop")
    assert (tmp_path / "a.json").read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 1
