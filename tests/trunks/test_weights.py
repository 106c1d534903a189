"""Weights from local files: what is loaded, and that nothing is half-loaded."""

import os
import pickle
import random
from pathlib import Path

import pytest
import torch
from torch import nn
from torchvision.models import get_model

from dr_plugin.trunks import DeepRankingTrunk, SmallConvNet, load_weights
from dr_plugin.trunks.weights import read_state


def small_trunk(channels=(4, 8), **arguments):
    return DeepRankingTrunk(SmallConvNet(channels), **{"embedding_size": 6, "input_size": 16} | arguments)


def equal_states(one, other):
    assert one.keys() == other.keys()
    return all(torch.equal(value, other[name]) for name, value in one.items())


@pytest.fixture
def file(tmp_path):
    return tmp_path / "weights.pt"


@pytest.mark.parametrize("legacy_format", [False, True])
@pytest.mark.parametrize("as_checkpoint", [False, True])
def test_whole_trunk_is_loaded(file, legacy_format, as_checkpoint):
    source = small_trunk()
    content = source.state_dict()
    if as_checkpoint:
        content = {"format": 1, "models": {"trunk": content, "head": {"w": torch.ones(2)}}, "epoch": 3}
    torch.save(content, file, _use_new_zipfile_serialization=not legacy_format)
    trunk = small_trunk(weights=file)
    assert equal_states(trunk.state_dict(), source.state_dict())


def test_convnet_alone_is_loaded(file):
    source = SmallConvNet((4, 8))
    torch.save(source.state_dict(), file)
    trunk = small_trunk(weights=str(file))
    assert equal_states(trunk.convnet.state_dict(), source.state_dict())


@pytest.mark.parametrize("classes", [1000, 7])
def test_classifier_of_a_torchvision_file_is_left_out(file, classes):
    source = get_model("mobilenet_v3_small", num_classes=classes).state_dict()
    torch.save(source, file)
    trunk = DeepRankingTrunk("mobilenet_v3_small", embedding_size=4, input_size=32, weights=file)
    expected = {name: value for name, value in source.items() if not name.startswith("classifier.3.")}
    assert equal_states(trunk.convnet.state_dict(), expected)


def test_side_outputs_of_a_googlenet_file_are_left_out(file):
    torch.save(get_model("googlenet", aux_logits=True, init_weights=False).state_dict(), file)
    DeepRankingTrunk("googlenet", embedding_size=4, input_size=32, weights=file)


def test_bfloat16_is_cast_up(file):
    source = {name: value.bfloat16() for name, value in small_trunk().state_dict().items()}
    torch.save(source, file)
    loaded = small_trunk(weights=file).state_dict()
    assert loaded["embedding.weight"].dtype == torch.float32
    assert all(torch.equal(value.bfloat16(), source[name]) for name, value in loaded.items())


def test_old_file_without_batch_counts_is_loaded(file):
    source = SmallConvNet((4, 8)).state_dict()
    torch.save({name: v for name, v in source.items() if not name.endswith("num_batches_tracked")}, file)
    assert equal_states(small_trunk(weights=file).convnet.state_dict(), source)


def test_load_weights_works_on_a_trunk_that_exists(file):
    source, trunk = small_trunk(), small_trunk()
    torch.save(source.state_dict(), file)
    load_weights(trunk, file)
    assert equal_states(trunk.state_dict(), source.state_dict())


def test_load_weights_works_on_any_module(file):
    source, module = SmallConvNet((4,)), SmallConvNet((4,))
    torch.save(source.state_dict(), file)
    load_weights(module, file)
    assert equal_states(module.state_dict(), source.state_dict())


@pytest.mark.parametrize("part", ["trunk", "convnet"])
def test_mismatch_lists_everything_and_loads_nothing(file, part):
    module = small_trunk() if part == "trunk" else SmallConvNet((4, 8))
    prefix = "convnet." if part == "trunk" else ""
    content = module.state_dict()
    del content[prefix + "1.weight"]
    content["stranger"] = torch.zeros(1)
    content[prefix + "0.weight"] = torch.zeros(2, 3, 3, 3)
    torch.save(content, file)
    trunk = small_trunk()
    before = {name: value.clone() for name, value in trunk.state_dict().items()}
    with pytest.raises(ValueError, match="nothing was loaded") as error:
        load_weights(trunk, file)
    assert f"1 missing: {prefix}1.weight;" in str(error.value)
    assert "1 unexpected: stranger;" in str(error.value)
    assert f"1 of the wrong shape: {prefix}0.weight (2, 3, 3, 3) instead of (4, 3, 3, 3)" in str(error.value)
    assert equal_states(trunk.state_dict(), before)


def test_long_mismatch_is_cut_off_with_a_count(file):
    torch.save({f"layer{i}": torch.zeros(1) for i in range(20)}, file)
    with pytest.raises(ValueError, match=r"20 unexpected: layer0, .*layer7 and 12 more") as error:
        small_trunk(weights=file)
    assert "the ConvNet SmallConvNet" in str(error.value)


def test_trunk_of_another_embedding_size_is_refused(file):
    torch.save(small_trunk(embedding_size=5).state_dict(), file)
    with pytest.raises(ValueError, match=r"DeepRankingTrunk;.*embedding.bias \(5,\) instead of \(6,\)"):
        small_trunk(weights=file)


def test_standard_stem_does_not_fit_the_small_one(file):
    torch.save(get_model("resnet18").state_dict(), file)
    with pytest.raises(ValueError, match=r"conv1.weight \(64, 3, 7, 7\) instead of \(64, 3, 3, 3\)"):
        DeepRankingTrunk(
            "resnet18",
            embedding_size=4,
            input_size=32,
            convnet_stem="small",
            weights=file,
            low_resolution=False,
        )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"format": 2, "models": {"trunk": {}}}, "a checkpoint of format 2, expected format 1"),
        ({"models": {"trunk": {}}}, "a checkpoint of format None, expected format 1"),
        ({"format": 1, "models": {"embedder": {}}}, "holds no model 'trunk'"),
        ({"format": 1, "models": {"trunk": {}}}, "expected a state dict"),
        ({"format": 1, "models": {"trunk": [1]}}, "holds list, expected a state dict"),
        ({}, "expected a state dict"),
        (torch.zeros(3), "holds Tensor, expected a state dict"),
        ({"model": {"w": torch.zeros(1)}, "epoch": 3}, "a dict with model, epoch, expected a state dict"),
        ({1: torch.zeros(1)}, "expected a state dict"),
    ],
)
def test_file_of_another_kind_is_refused(file, content, message):
    torch.save(content, file)
    with pytest.raises(ValueError, match=message):
        read_state(file)


def test_missing_file_and_folder_are_refused(tmp_path):
    for path in (tmp_path / "none.pt", tmp_path):
        with pytest.raises(ValueError, match="which is no file; expected 'imagenet' or a local file"):
            read_state(path)


class Hostile:
    """Unpickled by a careless loader, this makes the folder ``path``."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("save", [torch.save, lambda content, path: path.write_bytes(pickle.dumps(content))])
def test_code_in_a_file_does_not_run(file, tmp_path, save):
    save({"w": Hostile(tmp_path / "owned")}, file)
    with pytest.raises(ValueError, match="damaged, or holds more than tensors"):
        read_state(file)
    assert not (tmp_path / "owned").exists()


@pytest.mark.filterwarnings("ignore")  # torch warns of some of what the damaged bytes look like
@pytest.mark.parametrize("legacy_format", [False, True])
def test_damaged_file_is_one_clear_error(file, legacy_format):
    torch.save(nn.Linear(3, 2).state_dict(), file, _use_new_zipfile_serialization=not legacy_format)
    whole = Path(file).read_bytes()
    dice = random.Random(0)
    refused = 0
    for _ in range(60):
        damaged = bytearray(whole[: dice.randrange(len(whole))] if dice.random() < 0.5 else whole)
        for place in (dice.randrange(len(damaged) or 1) for _ in range(4) if damaged):
            damaged[place] = dice.randrange(256)
        file.write_bytes(damaged)
        try:
            read_state(file)
        except ValueError:
            refused += 1
    assert refused > 30


def test_relative_home_is_expanded(file, monkeypatch):
    torch.save(nn.Linear(3, 2).state_dict(), file)
    monkeypatch.setenv("HOME", str(file.parent))
    assert read_state("~/weights.pt").keys() == {"weight", "bias"}


def test_flipped_bit_of_a_weight_is_refused(file):
    """torch itself loads it as another weight."""
    source = small_trunk()
    torch.save(source.state_dict(), file)
    content = bytearray(file.read_bytes())
    content[content.index(source.convnet[0].weight.detach().numpy().tobytes()) + 3] ^= 0x40
    file.write_bytes(content)
    assert not equal_states(torch.load(file, weights_only=True), source.state_dict())
    trunk = small_trunk()
    before = {name: value.clone() for name, value in trunk.state_dict().items()}
    with pytest.raises(ValueError, match=r"is damaged, .*BadZipFile: the checksum of '.*data/\d+' is wrong"):
        load_weights(trunk, file)
    assert equal_states(trunk.state_dict(), before)


@pytest.mark.skipif(not hasattr(torch.serialization, "set_crc32_options"), reason="torch always does")
def test_file_without_checksums_is_read(file):
    source = small_trunk()
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(source.state_dict(), file)
    finally:
        torch.serialization.set_crc32_options(True)
    trunk = small_trunk()
    load_weights(trunk, file)
    assert equal_states(trunk.state_dict(), source.state_dict())
