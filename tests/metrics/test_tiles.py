import pytest
import torch

from dr_plugin.metrics import nearest
from dr_plugin.metrics.tiles import TILE_BYTES, Tiles, chunk_rows, full_precision


def draw(rows, dimension, seed=0):
    return torch.randn(rows, dimension, generator=torch.Generator().manual_seed(seed))


def test_full_precision_is_set_and_put_back():
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        with full_precision():
            matmul = torch.backends.cuda.matmul
            inside = getattr(matmul, "fp32_precision", None) or torch.get_float32_matmul_precision()
        assert inside in ("ieee", "highest")
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)


def test_no_block_is_larger_than_the_chunk(monkeypatch):
    shapes = []
    addmm, select = torch.addmm, torch.index_select

    def recorded_addmm(squares, part, block, **options):
        shapes.append((len(part), block.shape[1], options["out"].untyped_storage().nbytes()))
        return addmm(squares, part, block, **options)

    gathered = []

    def recorded_select(embeddings, dim, index, **options):
        gathered.append(options["out"].untyped_storage().nbytes() // (4 * 4))
        return select(embeddings, dim, index, **options)

    monkeypatch.setattr(torch, "addmm", recorded_addmm)
    monkeypatch.setattr(torch, "index_select", recorded_select)
    query, gallery = draw(100, 4), draw(250, 4, seed=1)
    nearest(query, gallery, 3, chunk_size=32)
    assert len(shapes) == 4 * 8  # every query block meets every gallery block
    assert sum(rows * columns for rows, columns, _ in shapes) == 100 * 250
    assert max(rows for rows, _, _ in shapes) == 32
    assert max(columns for _, columns, _ in shapes) == 32
    assert max(size for _, _, size in shapes) <= 32 * (32 + 3 + 8) * 4
    assert max(gathered) <= 32


@pytest.mark.parametrize("dimension", [1, 128, 4096, 12288, 200_000])
def test_default_chunk_fills_the_budget_and_not_more(dimension):
    def size(rows):
        return 4 * (rows * rows + 2 * rows * dimension)

    rows = chunk_rows(dimension)
    assert size(rows) <= TILE_BYTES < size(rows + 1)


def test_progress_counts_every_tile():
    calls = []
    nearest(draw(10, 3), draw(25, 3), 2, chunk_size=5, progress=lambda *call: calls.append(call))
    assert calls == [("nearest neighbours", done, 10) for done in range(1, 11)]


def test_faiss_progress_counts_query_blocks():
    calls = []
    nearest(
        draw(10, 3), draw(25, 3), 2, chunk_size=5, backend="faiss", progress=lambda *call: calls.append(call)
    )
    assert calls == [("nearest neighbours", 1, 2), ("nearest neighbours", 2, 2)]


def test_tiles_cover_every_row_once():
    tiles = Tiles(draw(10, 2), draw(23, 2, seed=1), 7, torch.device("cpu"), torch.float32)
    blocks = [tiles.block(tiles.gallery, start) for start in tiles.starts(tiles.gallery)]
    assert [len(block) for block in blocks] == [7, 7, 7, 2]
    assert torch.equal(torch.cat(blocks), tiles.gallery)
