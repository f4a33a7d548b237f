import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hilander_dist.lander.strangers import JOINED, MIRRORED, make_strangers
from tests.points import clustered, random_rows


def rng(*key: int) -> np.random.Generator:
    return np.random.default_rng([19, *key])


def unit(x_ND: np.ndarray) -> np.ndarray:
    rows: np.ndarray = (x_ND / np.linalg.norm(x_ND, axis=1, keepdims=True)).astype(np.float32)
    return rows


@given(st.integers(1, 60), st.integers(2, 12), st.integers(1, 5), st.floats(0, 1))
@settings(deadline=None)
def test_strangers_are_unit_rows_of_new_classes_and_others_stay(N: int, D: int, classes: int, share: float) -> None:
    x_ND, label_N = unit(random_rows(N, N, D)), rng(N).integers(0, classes, N)
    made_ND, made_N = make_strangers(x_ND, label_N, share, rng(N, D))
    strange_N = made_N != label_N
    assert (made_N[strange_N] > label_N.max()).all()
    np.testing.assert_array_equal(made_ND[~strange_N], x_ND[~strange_N])
    np.testing.assert_allclose(np.linalg.norm(made_ND[strange_N], axis=1), 1, rtol=1e-4)
    for c in np.unique(made_N[strange_N]):
        assert len(np.unique(label_N[made_N == c])) == 1


def test_a_share_of_the_rows_and_no_other_are_strangers_mostly_alone() -> None:
    x_ND, label_N = clustered(3, 4000, 32, 20)
    made_N = make_strangers(unit(x_ND), label_N, 0.4, rng(1))[1]
    strange_N = made_N != label_N
    assert strange_N.mean() == pytest.approx(0.4, abs=0.03)
    count_P = np.unique(made_N[strange_N], return_counts=True)[1]
    assert (count_P == 1).mean() == pytest.approx(1 - JOINED, abs=0.05)
    assert count_P.max() < 12


def test_strangers_are_less_like_their_former_class_and_like_their_own() -> None:
    x_ND, label_N = clustered(4, 3000, 64, 12)
    x_ND = unit(x_ND)
    made_ND, made_N = make_strangers(x_ND, label_N, 0.5, rng(2))
    strange_N = made_N != label_N
    mean_D = x_ND.mean(0)
    centre_CD = np.stack([unit(x_ND - mean_D)[label_N == c].mean(0) for c in range(12)])
    before_N, after_N = ((unit(rows - mean_D) * unit(centre_CD)[label_N]).sum(1)[strange_N] for rows in (x_ND, made_ND))
    kept = after_N.mean() / before_N.mean()
    assert 1 - 2 * MIRRORED[1] - 0.1 < kept < 1 - 2 * MIRRORED[0] + 0.1
    others_NN = ~np.eye(3000, dtype=bool)
    same_NN = (made_N[:, None] == made_N) & others_NN & strange_N & strange_N[:, None]
    former_NN = (label_N[:, None] == label_N) & others_NN
    centred_ND = unit(x_ND - mean_D)
    cosine_NN, now_NN = centred_ND @ centred_ND.T, unit(made_ND - mean_D) @ unit(made_ND - mean_D).T
    assert now_NN[same_NN].mean() == pytest.approx(cosine_NN[former_NN].mean(), rel=0.15)


def test_the_spread_of_all_rows_stays_along_each_direction() -> None:
    x_ND = unit(clustered(5, 4000, 16, 8)[0])
    made_ND = make_strangers(x_ND, np.zeros(4000, dtype=np.int64), 1.0, rng(3))[0]
    direction_DD = np.linalg.eigh(np.cov(x_ND.T))[1]
    before_D, after_D = ((rows - x_ND.mean(0)) @ direction_DD for rows in (x_ND, made_ND))
    np.testing.assert_allclose(before_D.std(0), after_D.std(0), rtol=0.2)
