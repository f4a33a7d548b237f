import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hilander_dist.training.augment import JOINED, MIRRORED, divide_classes, make_strangers
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


@given(st.integers(1, 80), st.integers(2, 12), st.integers(1, 5), st.floats(1, 9))
@settings(deadline=None)
def test_parts_are_of_one_class_each_and_every_row_is_in_one(N: int, D: int, classes: int, parts: float) -> None:
    x_ND, label_N = unit(random_rows(N, N, D)), rng(N).integers(0, classes, N)
    made_ND, part_N = divide_classes(x_ND, label_N, parts, rng(N, D))
    assert made_ND.dtype == np.float32
    assert part_N.min() >= 0
    np.testing.assert_allclose(np.linalg.norm(made_ND, axis=1), 1, rtol=1e-4)
    former_P = {(p, c) for p, c in zip(part_N.tolist(), label_N.tolist(), strict=True)}
    assert len(former_P) == len(np.unique(part_N))


def test_no_rows_have_no_parts() -> None:
    made_ND, part_N = divide_classes(np.zeros((0, 4), np.float32), np.zeros(0, np.int64), 3.0, rng(0))
    assert made_ND.shape == (0, 4)
    assert part_N.shape == (0,)


def test_one_part_of_each_class_stays_and_the_distances_inside_the_others_do() -> None:
    x_ND, label_N = clustered(6, 2000, 48, 10)
    x_ND = unit(x_ND)
    made_ND, part_N = divide_classes(x_ND, label_N, 5.0, rng(4))
    parts = np.unique(part_N)
    assert 25 < len(parts) < 90
    stay_P = np.array([np.allclose(made_ND[part_N == p], x_ND[part_N == p], atol=1e-5) for p in parts])
    assert np.array_equal(np.sort([label_N[part_N == p][0] for p in parts[stay_P]]), np.arange(10))
    mean_D = x_ND.mean(0)
    for p in parts[~stay_P][:20]:
        before, after = (unit(rows[part_N == p] - mean_D) for rows in (x_ND, made_ND))
        np.testing.assert_allclose(before @ before.T, after @ after.T, atol=0.1)


def test_parts_of_one_class_are_apart_as_strangers_are() -> None:
    x_ND, label_N = clustered(7, 3000, 64, 12)
    x_ND = unit(x_ND)
    made_ND, part_N = divide_classes(x_ND, label_N, 3.0, rng(5))
    cosine_NN = unit(made_ND - x_ND.mean(0)) @ unit(made_ND - x_ND.mean(0)).T
    same_NN, former_NN = part_N[:, None] == part_N, label_N[:, None] == label_N
    inside, between, away = (
        cosine_NN[same_NN].mean(),
        cosine_NN[former_NN & ~same_NN].mean(),
        cosine_NN[~former_NN].mean(),
    )
    assert away < between < 0.7 * inside
