"""CrossBatchMemory: it takes our loss, and resumes where it was."""

import io

import pytest
import torch
from pytorch_metric_learning import losses

from dr_plugin.losses import CrossBatchMemory, DeepRankingLoss
from dr_plugin.miners import UniformTripletMiner

LABELS = torch.tensor([0, 0, 1, 1])


def _batches(count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(4, 3, generator=generator) for _ in range(count)]


def _memory(memory_size=10):
    return CrossBatchMemory(
        DeepRankingLoss(0.5), 3, memory_size=memory_size, miner=UniformTripletMiner(seed=1)
    )


def test_loss_is_over_the_batch_and_the_memory():
    memory, (first, second) = _memory(), _batches(2)
    memory(first, LABELS)
    embeddings = second.requires_grad_()
    loss = memory(embeddings, LABELS)
    references = torch.cat([first, second.detach()])
    ref_labels = LABELS.repeat(2)
    miner = UniformTripletMiner(seed=1)
    miner(first, LABELS, first.clone(), LABELS)
    query, positive, negative = miner(embeddings, LABELS, references, ref_labels)
    keep = positive != query + 4  # the image itself, as it lies in the memory
    assert not keep.all()
    triplets = query[keep], positive[keep], negative[keep]
    torch.testing.assert_close(
        loss, DeepRankingLoss(0.5)(embeddings, indices_tuple=triplets, ref_emb=references)
    )
    loss.backward()
    assert embeddings.grad.abs().sum() > 0


def test_without_a_miner_it_takes_all_triplets():
    memory = CrossBatchMemory(DeepRankingLoss(0.5), 3, memory_size=10)
    (batch,) = _batches(1)
    torch.testing.assert_close(memory(batch, LABELS), DeepRankingLoss(0.5)(batch, LABELS))


@pytest.mark.parametrize("seen", [1, 2, 3, 4], ids="{} batches".format)
def test_resumed_memory_goes_on_as_if_uninterrupted(seen):
    batches = _batches(7)
    memory = _memory()
    for batch in batches[:seen]:
        memory(batch, LABELS)
    file = io.BytesIO()
    torch.save(memory.state_dict(), file)
    file.seek(0)
    resumed = _memory()
    resumed.load_state_dict(torch.load(file, weights_only=True))
    for batch in batches[seen:]:
        assert resumed(batch, LABELS).item() == memory(batch, LABELS).item()


def test_loss_that_it_cannot_feed_is_refused():
    with pytest.raises(Exception, match="not supported for ArcFaceLoss"):
        CrossBatchMemory(losses.ArcFaceLoss(2, 3), 3)
