"""ReservoirMemory: against explicit lists, against PML's queue, its law, its state, and its life inside PML."""

import copy
import io

import pytest
import torch
from pytorch_metric_learning import losses, miners
from pytorch_metric_learning.utils import distributed
from scipy.stats import chi2
from torch.utils.data import TensorDataset

from dr_plugin.losses import CrossBatchMemory, DeepRankingLoss, LRMLLoss, PDDMLoss, ReservoirMemory
from dr_plugin.losses.example_weights import loss_terms, mean_relevances, query_losses
from dr_plugin.miners import UniformTripletMiner

SIZE = 4
WEIGHS = ["relevance", "given", "loss", None]
# LiftedStructureLoss takes PML's places in the queue for indices of the batch, so that its value depends on them.
LOSSES = [name for name in CrossBatchMemory.supported_losses() if name != "LiftedStructureLoss"]


def _loss(name):
    ours = {"DeepRankingLoss": DeepRankingLoss, "LRMLLoss": LRMLLoss, "PDDMLoss": lambda: PDDMLoss(SIZE)}
    with torch.random.fork_rng():
        torch.manual_seed(0)  # two of PDDM's have the same weights
        return ours[name]() if name in ours else getattr(losses, name)()


def _batch(generator, count=12, classes=4):
    labels = torch.randint(classes, (count,), generator=generator)
    return torch.randn(count, SIZE, generator=generator), labels


def _generator(seed=0):
    return torch.Generator().manual_seed(seed)


def _memory(capacity=2, loss=None, **arguments):
    return ReservoirMemory(DeepRankingLoss(0.5) if loss is None else loss, SIZE, capacity, **arguments)


def _held(memory):
    embeddings, labels = memory.held()
    return sorted((label, *row) for row, label in zip(embeddings.tolist(), labels.tolist(), strict=True))


class ListMemory:
    """The same with a dict of lists, and triplets by loops."""

    def __init__(self, capacity, max_age, seed):
        self.capacity, self.max_age, self.entries, self.call = capacity, max_age, {}, 0
        self.generator = _generator(seed)

    def __call__(self, embeddings, labels, weights):
        if self.max_age is not None:
            for label, entries in self.entries.items():
                self.entries[label] = [entry for entry in entries if self.call - entry[2] <= self.max_age]
        references = [*zip(labels.tolist(), embeddings.detach(), strict=True)]
        references += [(label, entry[1]) for label, entries in self.entries.items() for entry in entries]
        hinges = []
        for q, label in enumerate(labels.tolist()):
            distances = [
                (
                    torch.nn.functional.normalize(embeddings[q], dim=0)
                    - torch.nn.functional.normalize(x, dim=0)
                )
                .square()
                .sum()
                for _, x in references
            ]
            for p, (positive, _) in enumerate(references):
                for n, (negative, _) in enumerate(references):
                    if positive == label != negative and p != q:
                        hinges.append((0.5 + distances[p] - distances[n]).clamp(min=0))
        arrivals = torch.empty(len(labels), dtype=torch.float64).exponential_(generator=self.generator)
        for label, row, arrival, weight in zip(
            labels.tolist(), embeddings.detach(), arrivals.float(), weights, strict=True
        ):
            self.entries.setdefault(label, []).append((float(arrival / weight), row, self.call))
        for entries in self.entries.values():
            entries.sort(key=lambda entry: entry[0])
            del entries[self.capacity :]
        self.call += 1
        positive = [hinge for hinge in hinges if hinge > 0]
        return torch.stack(positive).mean() if positive else torch.zeros(())

    def held(self):
        return sorted((label, *row.tolist()) for label, part in self.entries.items() for _, row, _ in part)


@pytest.mark.parametrize("max_age", [None, 1, 2])
@pytest.mark.parametrize("capacity", [1, 3])
@pytest.mark.parametrize("weigh", ["given", None])
def test_same_as_a_dict_of_lists(weigh, capacity, max_age):
    memory = _memory(capacity, weigh=weigh, max_age=max_age, seed=3)
    expected, generator = ListMemory(capacity, max_age, seed=3), _generator()
    for count in (5, 1, 8, 0, 7, 6):
        embeddings, labels = _batch(generator, count)
        weights = torch.rand(count, generator=generator) + 0.1 if weigh else torch.ones(count)
        if weigh:
            memory.observe(weights)
        embeddings.requires_grad_()
        other = embeddings.detach().clone().requires_grad_()
        loss, expected_loss = memory(embeddings, labels), expected(other, labels, weights)
        torch.testing.assert_close(loss, expected_loss)
        assert _held(memory) == expected.held()
        if expected_loss.requires_grad:
            loss.backward()
            expected_loss.backward()
            torch.testing.assert_close(embeddings.grad, other.grad)
    assert memory.calls == 6


def _pair(name, miner, weigh):
    ours = ReservoirMemory(_loss(name), SIZE, 100, miner, weigh=weigh, max_triplets=None)
    return ours, CrossBatchMemory(_loss(name), SIZE, memory_size=1000, miner=miner)


@pytest.mark.parametrize(
    ("name", "miner", "weigh"),
    [(name, None, weigh) for name in LOSSES for weigh in ("loss", None)]
    + [
        ("TripletMarginLoss", miners.TripletMarginMiner(margin=0.3), "relevance"),
        ("TripletMarginLoss", miners.MultiSimilarityMiner(), "relevance"),
        ("ContrastiveLoss", miners.BatchHardMiner(), "relevance"),
        ("MultiSimilarityLoss", miners.MultiSimilarityMiner(), "relevance"),
    ],
)
def test_same_as_pml_while_nothing_has_to_go(name, miner, weigh):
    ours, theirs = _pair(name, miner, weigh)
    generator = _generator(1)
    for _ in range(3):
        embeddings, labels = _batch(generator)
        first, second = (embeddings.clone().requires_grad_() for _ in range(2))
        loss, expected = ours(first, labels), theirs(second, labels)
        torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-5)
        loss.backward()
        expected.backward()
        torch.testing.assert_close(first.grad, second.grad, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("name", ["TripletMarginLoss", "NTXentLoss"])
def test_same_as_pml_with_an_enqueue_mask(name):
    ours, theirs = _pair(name, None, "relevance")
    generator, mask = _generator(2), torch.arange(12) % 2 == 0
    for _ in range(3):
        embeddings, labels = _batch(generator)
        loss, expected = (memory(embeddings, labels, enqueue_mask=mask) for memory in (ours, theirs))
        torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-5)
    assert len(ours.held()[1]) == 18


@pytest.mark.parametrize("seed", range(8))
def test_weights_given_with_an_enqueue_mask_are_those_of_the_entries(seed):
    memory = _memory(1, weigh="given", seed=seed)
    memory.observe(torch.tensor([1e9, 1.0, 0.0, 1e9]))
    memory(torch.eye(4), torch.zeros(4).long(), enqueue_mask=torch.tensor([False, True, True, False]))
    assert _held(memory) == [(0, 0, 1, 0, 0)]


def test_indices_of_the_batch_are_added():
    memory, generator = _memory(100, miner=UniformTripletMiner(seed=1)), _generator()
    memory(*_batch(generator))
    embeddings, labels = _batch(generator)
    given = UniformTripletMiner(3, seed=2)(embeddings, labels)
    held, held_labels = memory.held()
    references = torch.cat([embeddings, held])
    query, positive, negative = memory.miner(embeddings, labels, references, torch.cat([labels, held_labels]))
    memory.miner.load_state_dict({**memory.miner.state_dict(), "_extra_state": _first_call_state()})
    keep = positive != query
    union = [torch.cat([a[keep], b]) for a, b in zip((query, positive, negative), given, strict=True)]
    expected = DeepRankingLoss(0.5)(embeddings, labels, tuple(union), references)
    torch.testing.assert_close(memory(embeddings, labels, given), expected)


def _first_call_state():
    """The miner's state after the memory's first call."""
    memory, generator = _memory(100, miner=UniformTripletMiner(seed=1)), _generator()
    memory(*_batch(generator))
    return memory.miner.get_extra_state()


def test_given_pairs_and_triplets_meet_a_loss_of_either_kind():
    embeddings, labels = _batch(_generator())
    pairs, triplets = (
        miners.MultiSimilarityMiner()(embeddings, labels),
        UniformTripletMiner()(embeddings, labels),
    )
    for loss in (losses.ContrastiveLoss(), losses.TripletMarginLoss()):
        for miner in (None, miners.MultiSimilarityMiner(), UniformTripletMiner()):
            for given in (pairs, triplets):
                memory = _memory(loss=loss, miner=miner)
                assert memory(embeddings, labels, given).isfinite()


INCLUSION = [0.1269, 0.2479, 0.3621, 0.4680, 0.7951]  # of weights 1, 2, 3, 4, 10 and capacity 2


@pytest.mark.parametrize("calls", [1, 2, 5])
def test_what_stays_follows_the_law_of_a_res_in_any_number_of_calls(calls):
    classes, weights = 3000, torch.tensor([1.0, 2, 3, 4, 10])
    memory = ReservoirMemory(DeepRankingLoss(), 1, 2, weigh="given", num_classes=classes, max_triplets=1)
    items = torch.arange(5).repeat(classes)
    labels = torch.arange(classes).repeat_interleave(5)
    for part in items.reshape(classes, 5).T.chunk(calls):  # (items of the call, classes)
        item, label = part.flatten(), torch.arange(classes).repeat(len(part))
        memory.observe(weights[item])
        memory(item[:, None].float(), label)
    counts = memory.held()[0].flatten().long().bincount(minlength=5).double()
    assert counts.sum() == 2 * classes == len(labels) * 2 // 5
    expected = torch.tensor(INCLUSION).double() * classes
    # Counts of two draws a class vary less than independent ones: an upper bound of the statistic.
    variance = expected * (1 - expected / classes)
    assert chi2.sf(((counts - expected) ** 2 / variance).sum().item(), 5) > 0.001


def test_equal_weights_keep_a_uniform_sample():
    classes, size = 3000, 6
    memory = ReservoirMemory(DeepRankingLoss(), 1, 2, weigh=None, max_triplets=1, seed=4)
    for part in torch.arange(size).chunk(3):
        memory(part.repeat(classes)[:, None].float(), torch.arange(classes).repeat_interleave(len(part)))
    counts = memory.held()[0].flatten().long().bincount(minlength=size).double()
    expected = classes * 2 / size
    statistic = ((counts - expected) ** 2 / expected).sum().item() / (1 - 2 / size) * (size - 1) / size
    assert 0.001 < chi2.sf(statistic, size - 1) < 0.999


@pytest.mark.parametrize("weigh", WEIGHS)
def test_every_class_seen_stays_represented(weigh):
    memory, generator = _memory(2, weigh=weigh), _generator(5)
    seen = set()
    for _ in range(30):
        embeddings, labels = _batch(generator, 6, classes=20)
        if weigh == "given":
            memory.observe(torch.randint(2, (6,), generator=generator))  # many weigh nothing
        memory(embeddings, labels)
        seen |= set(labels.tolist())
        assert set(memory.held()[1].tolist()) == seen
        assert memory.held()[1].bincount().max() <= 2


def test_weight_zero_is_held_only_where_there_is_room():
    memory = _memory(2, weigh="given")
    rows, labels = torch.eye(4)[:3], torch.zeros(3).long()
    memory.observe([0, 0, 0])
    memory(rows, labels)
    assert len(memory.held()[1]) == 2
    memory.observe([1e-30, 0, 1e-30])
    memory(-rows, labels)
    assert _held(memory) == [(0, -1, 0, 0, 0), (0, 0, 0, -1, 0)]


def test_relevant_examples_are_kept():
    generator, centre = _generator(6), torch.tensor([5.0, 0, 0, 0])
    kept = []
    for seed in range(20):
        memory = _memory(5, seed=seed, bandwidth=0.2)
        for _ in range(10):
            noise = torch.randn(10, SIZE, generator=generator)
            near = torch.arange(10) < 5  # these five are alike, the others like none
            memory(torch.where(near[:, None], centre + 0.1 * noise, noise), torch.zeros(10).long())
        kept += (memory.held()[0][:, 0] > 3).tolist()
    assert sum(kept) > 0.9 * len(kept)


def test_mean_relevance_by_loops():
    generator = _generator()
    embeddings, labels = _batch(generator, 6, classes=3)
    labels[0] = 9  # the only one of its class
    more, more_labels = _batch(generator, 5, classes=3)
    references, ref_labels = torch.cat([embeddings, more]), torch.cat([labels, more_labels])
    weights = mean_relevances(embeddings, labels, references, ref_labels, kernel="gaussian", bandwidth=0.7)
    unit = torch.nn.functional.normalize(references, dim=1)
    for i in range(6):
        values = [
            torch.exp(-(unit[i] - unit[j]).square().sum() / (2 * 0.7**2))
            for j in range(len(unit))
            if ref_labels[j] == labels[i] and j != i
        ]
        torch.testing.assert_close(weights[i], torch.stack(values).mean() if values else torch.tensor(1.0))


def test_loss_of_a_query_by_loops():
    embeddings, labels = _batch(_generator(), 8, classes=3)
    triplets = UniformTripletMiner(4)(embeddings, labels)
    loss = DeepRankingLoss(0.5)
    with loss_terms(loss) as terms:
        loss(embeddings, labels, triplets)
    weights = query_losses(terms, 9, torch.device("cpu"))
    unit = torch.nn.functional.normalize(embeddings, dim=1)
    for i in range(8):
        hinges = [
            (0.5 + (unit[q] - unit[p]).square().sum() - (unit[q] - unit[n]).square().sum()).clamp(min=0)
            for q, p, n in zip(*triplets, strict=True)
            if q == i
        ]
        torch.testing.assert_close(weights[i], torch.stack(hinges).mean() if hinges else torch.tensor(0.0))
    assert weights[8] == 0
    assert not loss.reducer._forward_pre_hooks


def test_loss_weights_let_the_costly_stay():
    memory = _memory(1, weigh="loss", loss=losses.TripletMarginLoss(margin=0.1), seed=1)
    # Class 0: two that lie together and one nearer to class 1; only the last costs something as a query.
    embeddings = torch.tensor(
        [[1.0, 0, 0, 0], [1, 0.01, 0, 0], [0.5, 1, 0, 0], [0, 1, 0, 0], [0, 1, 0.01, 0]]
    )
    for seed in range(10):
        memory.generator.manual_seed(seed)
        memory.reset_queue()
        memory(embeddings, torch.tensor([0, 0, 0, 1, 1]))
        assert (0, 0.5, 1, 0, 0) in _held(memory)


def test_entry_serves_max_age_calls():
    memory = _memory(3, max_age=2)
    memory(torch.eye(4), torch.arange(4))
    for call in range(1, 5):
        memory(torch.ones(1, 4), torch.tensor([7]))
        assert len(memory.held()[1]) == (4 if call <= 2 else 0) + min(call, 3)


@pytest.mark.parametrize("seen", [0, 1, 4])
@pytest.mark.parametrize("weigh", WEIGHS)
def test_resumed_memory_goes_on_as_if_uninterrupted(weigh, seen):
    def make():
        return _memory(2, weigh=weigh, max_age=3, max_triplets=20, miner=UniformTripletMiner(4), seed=8)

    def call(memory, embeddings, labels):
        if weigh == "given":
            memory.observe(embeddings[:, 0].abs())
        return memory(embeddings, labels).item()

    generator = _generator()
    batches = [_batch(generator, 8, classes=3 + 2 * step) for step in range(8)]
    memory = make()
    for batch in batches[:seen]:
        call(memory, *batch)
    file = io.BytesIO()
    torch.save(memory.state_dict(), file)
    file.seek(0)
    resumed = make()
    call(resumed, *batches[7])  # other classes, and more of them: what was there must be gone
    resumed.load_state_dict(torch.load(file, weights_only=True))
    for batch in batches[seen:]:
        assert call(resumed, *batch) == call(memory, *batch)
        assert _held(resumed) == _held(memory)


def test_copy_is_independent():
    memory, generator = _memory(), _generator()
    memory(*_batch(generator))
    copied, batch = copy.deepcopy(memory), _batch(generator)
    before = _held(memory)
    expected = copied(*batch)
    assert _held(memory) == before
    assert memory(*batch) == expected


def test_global_generator_is_left_alone():
    before = torch.get_rng_state()
    _memory(max_triplets=5)(*_batch(_generator()))
    assert torch.equal(torch.get_rng_state(), before)


def test_seed_decides_what_stays():
    held = []
    for seed in (0, 0, 1):
        memory, generator = _memory(1, seed=seed), _generator()
        for _ in range(4):
            memory(*_batch(generator))
        held.append(_held(memory))
    assert held[0] == held[1] != held[2]


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_embeddings_of_any_dtype(dtype):
    memory, generator = _memory(100), _generator()
    for _ in range(3):
        embeddings, labels = _batch(generator)
        embeddings = embeddings.to(dtype).requires_grad_()
        loss = memory(embeddings, labels)
        loss.backward()
        assert loss.isfinite()
        assert embeddings.grad.isfinite().all()
    rows = memory.held()[0]
    assert rows.dtype == torch.float32
    assert (rows == embeddings.detach().float()[0]).all(dim=1).any()


def test_half_precision_memory_keeps_its_keys():
    memory = _memory(3, weigh="given")
    memory.observe(torch.full((12,), 1e-6))
    memory(*_batch(_generator()))
    keys = memory.memory.log_keys.clone()
    memory.half()
    assert memory.held()[0].dtype == torch.float16
    assert torch.equal(memory.memory.log_keys, keys)
    assert (keys[keys > -torch.inf] < -65504).any()  # which half precision cannot hold


def test_entries_that_are_not_finite_are_not_held():
    memory = _memory(5, weigh=None)
    embeddings = torch.eye(4)
    embeddings[1, 2], embeddings[3, 0] = torch.nan, torch.inf
    memory(embeddings, torch.tensor([0, 0, 1, 1]))
    assert _held(memory) == [(0, 1, 0, 0, 0), (1, 0, 0, 1, 0)]


def test_loss_that_raises_leaves_the_memory_as_it_was():
    memory = _memory()
    memory(*_batch(_generator()))
    before, memory.loss.distance = _held(memory), None
    with pytest.raises(AttributeError):
        memory(*_batch(_generator(1)))
    assert _held(memory) == before
    assert memory.calls == 1


@pytest.mark.parametrize("weigh", ["relevance", "loss", None])
@pytest.mark.parametrize(
    "labels", [[], [3], [0, 1, 2], [5, 5, 5]], ids=["empty", "one", "singletons", "one class"]
)
@pytest.mark.parametrize("name", CrossBatchMemory.supported_losses())
def test_degenerate_batches(name, labels, weigh):
    memory = _memory(loss=_loss(name), weigh=weigh)
    for _ in range(2):
        embeddings = torch.randn(len(labels), SIZE, generator=_generator(), requires_grad=True)
        loss = memory(embeddings, torch.tensor(labels, dtype=torch.long))
        assert loss.isfinite()
        loss.backward()
    assert len(memory.held()[1]) == min(2, 2 * labels.count(5) or 2) * len(set(labels))


@pytest.mark.parametrize("miner", [None, miners.TripletMarginMiner(), UniformTripletMiner()], ids=str)
@pytest.mark.parametrize("enqueued", [True, False])
def test_mask_of_all_or_none(enqueued, miner):
    memory = _memory(miner=miner)
    loss = memory(*_batch(_generator()), enqueue_mask=torch.full((12,), enqueued))
    assert loss == 0
    assert (len(memory.held()[1]) > 0) == enqueued


@pytest.mark.parametrize(
    "loss_func", [losses.TripletMarginLoss(margin=9), PDDMLoss(SIZE)], ids=["triplets", "PDDM"]
)
def test_budget_bounds_the_triplets_of_miners_and_pairs(loss_func):
    generator = _generator()
    for miner in (None, UniformTripletMiner(50), miners.MultiSimilarityMiner(epsilon=5)):
        memory = _memory(50, max_triplets=30, miner=miner, loss=loss_func)
        for _ in range(3):
            with loss_terms(memory.loss) as terms:
                memory(*_batch(generator))
            assert len(terms["loss"]["losses"]) == 30


def test_number_of_classes_is_bounded_where_it_was_said():
    memory = _memory(num_classes=4)
    memory(*_batch(_generator()))
    with pytest.raises(ValueError, match="got 5 classes so far, expected at most num_classes=4"):
        memory(torch.eye(4)[:1], torch.tensor([17]))


def test_classes_may_be_any_integers_of_any_dtype():
    memory = _memory()
    for dtype in (torch.int32, torch.int64, torch.int32):
        memory(torch.eye(4), torch.tensor([2**30, -7, 2**30 + 1, -7], dtype=dtype))
    assert sorted(memory.held()[1].tolist()) == [-7, -7, 2**30, 2**30, 2**30 + 1, 2**30 + 1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"capacity_per_class": 0}, "capacity_per_class: got 0, expected a whole number, at least 1"),
        ({"embedding_size": 2.0}, "embedding_size: got 2.0"),
        ({"num_classes": 0}, "num_classes: got 0, expected a whole number, at least 1 and below .*, or None"),
        ({"max_triplets": True}, "max_triplets: got True"),
        ({"max_age": 0}, "max_age: got 0"),
        ({"seed": -1}, "seed: got -1"),
        ({"weigh": "relevence"}, "weigh: got 'relevence', expected one of relevance, given, loss or None"),
        ({"kernel": "intersection"}, "kernel: got 'intersection', expected one of gaussian"),
        ({"kernel": "gausian"}, "did you mean 'gaussian'"),
        ({"bandwidth": 0}, "bandwidth: got 0"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        ReservoirMemory(DeepRankingLoss(), **{"embedding_size": 4, "capacity_per_class": 2, **arguments})


def test_loss_that_it_cannot_feed_is_refused():
    with pytest.raises(ValueError, match=r"loss: got ArcFaceLoss, expected one of .*DeepRankingLoss"):
        ReservoirMemory(losses.ArcFaceLoss(2, 3), 3)


EMBEDDINGS, LABELS = torch.zeros(3, 4), torch.tensor([0, 0, 1])


@pytest.mark.parametrize(
    ("batch", "options", "message"),
    [
        (
            (torch.zeros(3, 5), LABELS),
            {},
            r"embeddings: got shape \(3, 5\), expected \(B, embedding_size=4\)",
        ),
        ((EMBEDDINGS, LABELS[:2]), {}, "must equal number of labels"),
        ((EMBEDDINGS, LABELS.float()), {}, "got labels of torch.float32, expected an integer class"),
        ((EMBEDDINGS, None), {}, "got no labels"),
        ((EMBEDDINGS, LABELS), {"enqueue_mask": torch.ones(3)}, "enqueue_mask: got torch.float32"),
        (
            (EMBEDDINGS, LABELS),
            {"enqueue_mask": torch.ones(2).bool()},
            r"of shape \(2,\), expected bool of shape",
        ),
        (
            (EMBEDDINGS, LABELS),
            {"enqueue_mask": torch.ones(3).bool(), "indices_tuple": (LABELS,) * 3},
            "both indices_tuple and enqueue_mask",
        ),
    ],
)
def test_batches_that_do_not_fit_are_refused(batch, options, message):
    memory = _memory()
    with pytest.raises(ValueError, match=message):
        memory(*batch, **options)
    assert memory.calls == 0


def test_mask_with_weights_by_loss_is_refused():
    with pytest.raises(ValueError, match="what it streams in is no query"):
        _memory(weigh="loss")(EMBEDDINGS, LABELS, enqueue_mask=torch.ones(3).bool())


def test_weights_are_told_before_each_call():
    memory = _memory(weigh="given")
    with pytest.raises(ValueError, match="weights: got none for 3 embeddings"):
        memory(EMBEDDINGS, LABELS)
    memory.observe(torch.ones(2))
    with pytest.raises(ValueError, match="weights: got 2 for 3 embeddings"):
        memory(EMBEDDINGS, LABELS)
    memory.observe(torch.ones(3))
    memory(EMBEDDINGS, LABELS)
    with pytest.raises(ValueError, match="weights: got none"):
        memory(EMBEDDINGS, LABELS)


@pytest.mark.parametrize("weights", [[1.0, -1], [torch.nan, 1], [torch.inf, 1], [[1.0]], 1.0])
def test_bad_weights_are_refused(weights):
    with pytest.raises(ValueError, match="finite and at least 0"):
        _memory(weigh="given").observe(weights)


def test_weights_that_nobody_asked_for_are_refused():
    with pytest.raises(ValueError, match="got weights with weigh='relevance'"):
        _memory().observe(torch.ones(3))


@pytest.mark.filterwarnings(
    "ignore:Converting a tensor with requires_grad=True:UserWarning"
)  # PML's "%.5f" % loss
@pytest.mark.parametrize("miner", [None, UniformTripletMiner(2)], ids=str)
def test_pml_trainer_trains_with_it(miner):
    from pytorch_metric_learning.trainers import MetricLossOnly

    torch.manual_seed(0)
    data, labels = torch.randn(24, 5), torch.arange(3).repeat(8)
    trunk = torch.nn.Linear(5, SIZE)
    before = trunk.weight.detach().clone()
    memory = _memory(4, loss=losses.TripletMarginLoss(margin=1.0))
    MetricLossOnly(
        models={"trunk": trunk},
        optimizers={"trunk_optimizer": torch.optim.SGD(trunk.parameters(), lr=0.1)},
        batch_size=12,
        loss_funcs={"metric_loss": memory},
        mining_funcs={} if miner is None else {"tuple_miner": miner},
        dataset=TensorDataset(data, labels),
        dataloader_num_workers=0,
        data_device="cpu",
    ).train(num_epochs=2)
    assert not torch.equal(trunk.weight, before)
    assert memory.calls == 4
    assert len(memory.held()[1]) == 12


def test_distributed_wrapper_takes_it(monkeypatch):
    """Two ranks in one process: what the other rank has is a fixed batch."""
    (first, labels), (second, other_labels) = _batch(_generator()), _batch(_generator(1))
    monkeypatch.setattr(distributed, "is_distributed", lambda: True)
    monkeypatch.setattr(distributed, "all_gather", lambda x: other_labels if x.ndim == 1 else second)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    loss = distributed.DistributedLossWrapper(_memory(100))(first, labels)
    expected = _memory(100)(torch.cat([first, second]), torch.cat([labels, other_labels]))
    torch.testing.assert_close(loss, 2 * expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("loss", [losses.ContrastiveLoss, losses.TripletMarginLoss])
def test_half_precision_is_taken_to_float32_for_losses_that_do_not_take_it(loss, dtype):
    memory = ReservoirMemory(loss(), embedding_size=4, capacity_per_class=2)
    labels = torch.tensor([0, 0, 1, 1])
    for _ in range(2):
        embeddings = torch.randn(4, 4, dtype=dtype, requires_grad=True)
        memory(embeddings, labels).backward()
        assert embeddings.grad.dtype == dtype
