import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hilander_dist.lander.losses import Denominators, balance_mask, lander_loss


def batch(seed: int, nodes: int = 30, k: int = 4) -> tuple[torch.Tensor, ...]:
    """logits_BK2, density_B, same_BK, mask_BK, gt_density_B; logits of -inf where a pad is, which no mask includes."""
    rng = np.random.default_rng(seed)
    pad_BK = rng.random((nodes, k)) < 0.2
    logits_BK2 = np.where(pad_BK[:, :, None], -np.inf, rng.normal(size=(nodes, k, 2)))
    mask_BK = (rng.random((nodes, k)) < 0.5) & ~pad_BK
    arrays = (logits_BK2, rng.normal(size=nodes), rng.random((nodes, k)) < 0.5, mask_BK, rng.normal(size=nodes))
    return tuple(torch.from_numpy(array) for array in arrays)


def test_formula() -> None:
    logits, density, same, mask, gt = batch(0)
    entropy = []
    for b, k in np.argwhere(mask.numpy()):
        l0, l1 = logits[b, k].tolist()
        entropy.append(np.log(np.exp(l0) + np.exp(l1)) - (l1 if same[b, k] else l0))
    expected = np.mean((density - gt).numpy() ** 2) + np.mean(entropy)
    found = lander_loss(logits, density, same, mask, gt, Denominators(len(gt), int(mask.sum())))
    assert float(found) == pytest.approx(expected)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000), workers=st.integers(1, 5))
def test_shares_of_any_number_of_workers_add_up(seed: int, workers: int) -> None:
    logits, density, same, mask, gt = batch(seed)
    denominators = Denominators(len(gt), int(mask.sum()))
    whole = lander_loss(logits, density, same, mask, gt, denominators)
    parts = [slice(rank, None, workers) for rank in range(workers)]
    shares = [lander_loss(logits[p], density[p], same[p], mask[p], gt[p], denominators) for p in parts]
    assert float(torch.stack(shares).sum()) == pytest.approx(float(whole))


def test_without_edges_only_the_density_counts() -> None:
    logits, density, same, mask, gt = batch(0)
    found = lander_loss(logits, density, same, torch.zeros_like(mask), gt, Denominators(30, 0))
    assert float(found) == pytest.approx(float(((density - gt) ** 2).mean()))


def counts(mask: np.ndarray, same: np.ndarray) -> tuple[int, int]:
    return int((mask & same).sum()), int((mask & ~same).sum())


@settings(max_examples=50, deadline=None)
@given(
    seed=st.integers(0, 2**40),
    step=st.integers(0, 10**9),
    positive=st.sampled_from([0.0, 0.05, 0.5, 0.8, 1.0]),
    workers=st.integers(1, 7),
)
def test_balance(seed: int, step: int, positive: float, workers: int) -> None:
    rng = np.random.default_rng(seed)
    mask, same = rng.random((500, 9)) < 0.7, rng.random((500, 9)) < positive
    edge_id = rng.permutation(10**6)[: mask.size].reshape(mask.shape)
    n_pos, n_neg = counts(mask, same)
    kept = balance_mask(mask, same, edge_id, seed, step, n_pos, n_neg)

    assert not (kept & ~mask).any()
    least = min(n_pos, n_neg)
    if least == 0:
        np.testing.assert_array_equal(kept, mask)
        return
    kept_pos, kept_neg = counts(kept, same)
    assert min(kept_pos, kept_neg) <= least
    assert (kept_pos if n_pos <= n_neg else kept_neg) == least
    # The majority's count is binomial with mean `least` and a deviation below its root.
    assert abs(kept_pos - kept_neg) <= 6 * least**0.5
    for rank in range(workers):
        part = slice(rank, None, workers)
        mine = balance_mask(mask[part], same[part], edge_id[part], seed, step, n_pos, n_neg)
        np.testing.assert_array_equal(mine, kept[part])


def test_balance_draws_anew_for_each_seed_and_step() -> None:
    mask, edge_id = np.ones(4000, bool), np.arange(4000)
    same = edge_id >= 1000
    drawn = [
        balance_mask(mask, same, edge_id, seed, step, 3000, 1000)[1000:]
        for seed, step in ((0, 0), (0, 1), (1, 0), (1, 1))
    ]
    for i, one in enumerate(drawn):
        for other in drawn[:i]:
            # Independent draws of a third agree on 1/9 + 4/9 of the edges.
            assert (one == other).mean() == pytest.approx(5 / 9, abs=0.06)


def test_balance_does_not_change_its_input() -> None:
    mask, same = np.ones(10, bool), np.ones(10, bool)
    kept = balance_mask(mask, same, np.arange(10), 0, 0, 10, 0)
    kept[:] = False
    assert mask.all()
