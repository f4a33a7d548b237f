import torch

from hilander_dist.lander.neighbours import neighbour_rows, rank_sum


def test_neighbour_rows_are_the_tables_rows() -> None:
    table = torch.arange(6.0).reshape(3, 2)
    rows = neighbour_rows(table, torch.tensor([[2, 0], [1, -1]]))
    assert rows.shape == (2, 2, 2)
    assert rows[0].tolist() == [[4, 5], [0, 1]]
    assert rows[1, 0].tolist() == [2, 3]


def test_an_empty_table_serves_pads_and_keeps_the_gradients_path() -> None:
    table = torch.zeros(0, 2, requires_grad=True)
    rows = neighbour_rows(table, torch.full((3, 4), -1))
    assert rows.shape == (3, 4, 2)
    torch.autograd.backward(rows.sum())
    assert table.grad is not None


def test_rank_sum_adds_from_the_first_rank_to_the_last() -> None:
    # In float32, 1e8 + 1 is 1e8: the order shows.
    values = torch.tensor([[1e8, 1.0, -1e8], [1e8, -1e8, 1.0]])
    assert rank_sum(values).tolist() == [0.0, 1.0]


def test_rank_sum_does_not_see_trailing_zeros() -> None:
    values = torch.randn(50, 7, 3, generator=torch.Generator().manual_seed(0))
    padded = torch.cat([values, torch.zeros(50, 4, 3)], 1)
    assert rank_sum(values).equal(rank_sum(padded))
    assert rank_sum(values[:, :0]).equal(torch.zeros(50, 3))
