import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hilander_dist.training.episodes import (
    DIVIDED,
    GROUPED,
    K_USED,
    LEAST_ROWS,
    OFFSET,
    ROWS_VALIDATION,
    STRANGE,
    UNEVEN,
    VALIDATION_EPISODES,
    Plan,
    build_episode,
    exact_neighbours,
    held_out_classes,
    move_together,
    pick_rows,
    plan_training,
    plan_validation,
    same_class,
    same_share,
)
from tests.points import clustered, random_rows


def rng(*key: int) -> np.random.Generator:
    return np.random.default_rng([9, *key])


@given(st.integers(4, 300), st.integers(0, 9), st.floats(0.01, 0.99))
def test_two_classes_are_left_on_either_side(classes: int, without_rows: int, share: float) -> None:
    size_C = rng(1).permutation(np.r_[np.ones(classes, int), np.zeros(without_rows, int)])
    held_C = held_out_classes(size_C, share, rng())
    assert 2 <= held_C.sum() <= classes - 2
    assert size_C[held_C].all()


@given(st.integers(0, 200), st.lists(st.integers(0, 400), min_size=1, max_size=40).filter(any))
@settings(deadline=None)
def test_plans_take_shares_of_the_classes_that_are_there(number: int, sizes: list[int]) -> None:
    size_C = np.array(sizes)
    plan = plan_training(number, size_C, rng(number), several=True)
    assert (size_C[plan.class_M] > 0).all()
    assert (np.diff(plan.class_M) > 0).all()
    assert ((plan.keep_M > 0) & (plan.keep_M <= 1)).all()
    again = plan_training(number, size_C, rng(number), several=True)
    np.testing.assert_array_equal(plan.keep_M, again.keep_M)


@given(st.integers(0, 200), st.lists(st.integers(1, 10**7), min_size=2, max_size=9))
@settings(deadline=None)
def test_an_episode_does_not_grow_with_its_classes_and_has_rows_of_two(number: int, sizes: list[int]) -> None:
    size_C = np.array(sizes)
    for plan in (plan_training(number, size_C, rng(number), False), plan_validation(number % 2, size_C, rng(number))):
        rows = (plan.keep_M * size_C[plan.class_M]).sum()
        assert rows <= 1.6 * 2500
        assert rows >= LEAST_ROWS or (plan.keep_M == 1).all()
        assert len(plan.class_M) > 1


def test_about_a_quarter_of_the_episodes_of_many_classes_are_grouped() -> None:
    for classes, share in ((7, 0.0), (40, GROUPED)):
        plans = [plan_training(number, np.full(classes, 30), rng(number), several=True) for number in range(200)]
        assert np.mean([plan.group > 0 for plan in plans]) == pytest.approx(share, abs=0.1)
    assert not any(plan_validation(number, np.full(40, 30), rng(number)).group for number in range(VALIDATION_EPISODES))


def test_episodes_of_several_sets_have_strangers_parts_uneven_noise_and_offsets() -> None:
    size_C = np.full(40, 30)
    plans = [plan_training(number, size_C, rng(number), several=True) for number in range(400)]
    shares = [
        np.mean([getattr(plan, name) > 0 for plan in plans]) for name in ("strangers", "parts", "uneven", "offset")
    ]
    assert shares == pytest.approx([STRANGE, DIVIDED, UNEVEN, OFFSET], abs=0.1)
    for number, plan in enumerate(plans[:20]):
        alone = plan_training(number, size_C, rng(number), several=False)
        assert (alone.strangers, alone.parts, alone.uneven, alone.offset) == (0, 0, 0, 0)
        assert alone[:2] + alone[4:7] == plan[:2] + plan[4:7]


def test_validation_takes_classes_as_they_are_and_of_all_sizes() -> None:
    size_C = np.full(200, 50)
    plans = [plan_validation(number, size_C, rng(number)) for number in range(VALIDATION_EPISODES)]
    assert [plan.k for plan in plans] == [K_USED] * VALIDATION_EPISODES
    assert len({plan.draw for plan in plans}) == VALIDATION_EPISODES
    assert (plans[0].keep_M == 1).all()
    assert len(plans[0].class_M) == ROWS_VALIDATION / 50
    assert len(np.unique(plans[1].keep_M)) > 10


def test_rows_are_drawn_by_their_id_whatever_part_they_are_in() -> None:
    id_N, class_N = np.arange(20_000), rng(1).integers(-1, 5, 20_000)
    plan = Plan(3, 80, np.array([1, 3]), np.array([0.25, 1.0]), 0.0, 1.0)
    picked_N = pick_rows(id_N, class_N, plan, 0)
    order = rng(2).permutation(20_000)
    np.testing.assert_array_equal(pick_rows(id_N[order], class_N[order], plan, 0), picked_N[order])
    share_C = [picked_N[class_N == c].mean() for c in range(-1, 5)]
    assert share_C[4] == 1
    assert share_C[2] == pytest.approx(0.25, abs=0.03)
    assert share_C[0] == share_C[1] == share_C[3] == share_C[5] == 0
    other = pick_rows(id_N, class_N, plan._replace(draw=4), 0)
    assert (other != picked_N).any()


def test_neighbours_are_the_most_similar_other_rows() -> None:
    x_ND = random_rows(0, 60, 5)
    x_ND /= np.linalg.norm(x_ND, axis=1, keepdims=True)
    x_ND[7] = x_ND[8] = x_ND[9]
    nbr_NK, sim_NK = exact_neighbours(np.ascontiguousarray(x_ND, np.float32), 9)
    sim_NN = x_ND.astype(np.float64) @ x_ND.T
    np.fill_diagonal(sim_NN, -np.inf)
    for i in range(60):
        real = nbr_NK[i] >= 0
        assert i not in nbr_NK[i]
        assert len(set(nbr_NK[i][real])) == real.sum()
        best = np.sort(sim_NN[i])[::-1][:9]
        np.testing.assert_allclose(sim_NK[i], np.where(best > 0, best, 0), atol=1e-6)
        np.testing.assert_allclose(sim_NN[i, nbr_NK[i][real]], sim_NK[i][real], atol=1e-6)


@pytest.mark.parametrize("rows", [0, 1, 3])
def test_few_rows_have_few_neighbours(rows: int) -> None:
    nbr_NK, sim_NK = exact_neighbours(np.ones((rows, 4), np.float32) / 2, 5)
    assert nbr_NK.shape == sim_NK.shape == (rows, 5)
    assert ((nbr_NK >= 0).sum(1) == max(rows - 1, 0)).all()


def test_an_episode_is_blurred_and_projected_and_knows_its_classes() -> None:
    x_ND, label_N = clustered(0, 300, 16, 10)
    plain = Plan(0, 10, np.zeros(0, int), np.zeros(0), 0.0, 1.0)
    clean = build_episode(x_ND, label_N, plain, rng())
    assert clean["nbr_NK"].shape == (300, 9)
    assert clean["shared_NKQ"].shape == (300, 9, 4)
    assert clean["cos_NKM"].shape == (300, 9, 3)
    same_NK, real_NK = same_class(clean)
    assert same_share(clean) == same_NK.sum() / real_NK.sum() > 0.5
    assert not same_NK[~real_NK].any()
    hard = build_episode(x_ND, label_N, plain._replace(noise=3.0), rng())
    narrow = build_episode(x_ND, label_N, plain._replace(project=0.25), rng())
    close = build_episode(x_ND, label_N, plain._replace(group=4.0), rng())
    strange = build_episode(x_ND, label_N, plain._replace(strangers=0.5), rng())
    parted = build_episode(x_ND, label_N, plain._replace(parts=5.0), rng())
    assert 25 < len(np.unique(parted["label_N"])) < 90
    assert same_share(parted) < same_share(clean)
    assert len(np.unique(strange["label_N"])) > len(np.unique(clean["label_N"])) + 50
    assert same_share(strange) < same_share(clean)
    sizes = np.unique(strange["label_N"], return_counts=True)[1]
    assert (sizes == 1).sum() > 0.15 * 300
    assert np.unique(clean["label_N"], return_counts=True)[1].min() > 1
    assert same_share(hard) < same_share(clean)
    assert same_share(close) < same_share(clean)
    assert (narrow["nbr_NK"] != clean["nbr_NK"]).any()
    assert np.isnan(same_share(build_episode(x_ND[:1], label_N[:1], plain, rng())))


def test_uneven_noise_and_offsets_make_hubs() -> None:
    x_ND, label_N = clustered(0, 600, 16, 10)
    plain = Plan(0, 10, np.zeros(0, int), np.zeros(0), 0.8, 1.0)

    def most_often(plan: Plan) -> float:
        nbr_NK = build_episode(x_ND, label_N, plan, rng())["nbr_NK"]
        return float(np.quantile(np.bincount(nbr_NK[nbr_NK >= 0], minlength=600), 0.98))

    assert (
        most_often(plain) < most_often(plain._replace(uneven=0.6)) < most_often(plain._replace(uneven=0.6, offset=2.0))
    )


@given(st.integers(0, 10_000), st.integers(1, 12), st.floats(1.0, 8.0))
@settings(deadline=None)
def test_classes_move_towards_the_mean_of_their_group(seed: int, classes: int, group: float) -> None:
    x_ND, label_N = clustered(seed, 60, 8, classes)
    x_ND = np.asarray(x_ND / np.linalg.norm(x_ND, axis=1, keepdims=True), dtype=np.float32)
    moved_ND = move_together(x_ND, label_N, group, rng(seed))
    assert moved_ND.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(moved_ND, axis=1), 1, atol=1e-5)
    if round(len(np.unique(label_N)) / group) >= len(np.unique(label_N)):
        # Alone in its group, a class stays.
        np.testing.assert_allclose(moved_ND, x_ND, atol=1e-5)
    np.testing.assert_array_equal(move_together(x_ND, label_N, group, rng(seed)), moved_ND)
    assert move_together(x_ND[:0], label_N[:0], group, rng()).shape == (0, 8)


def test_classes_of_one_group_come_closer_and_keep_their_shape() -> None:
    x_ND, label_N = clustered(0, 300, 16, 6)
    x_ND = np.asarray(x_ND / np.linalg.norm(x_ND, axis=1, keepdims=True), dtype=np.float32)
    moved_ND = move_together(x_ND, label_N, 6.0, rng(3))

    def apart(rows_ND: np.ndarray) -> tuple[float, float]:
        mean_CD = np.stack([rows_ND[label_N == c].mean(0) for c in range(6)])
        within = np.mean([np.linalg.norm(rows_ND[label_N == c] - mean_CD[c], axis=1).mean() for c in range(6)])
        return float(np.linalg.norm(mean_CD - mean_CD.mean(0), axis=1).mean()), float(within)

    (before, inside), (after, inside_after) = apart(x_ND), apart(moved_ND)
    assert after / inside_after < 0.95 * before / inside
