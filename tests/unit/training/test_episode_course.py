import datetime
import multiprocessing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from hilander_dist.config import RelationalModel, RelationalTrain
from hilander_dist.lander.inference import Inference
from hilander_dist.lander.relational import RelationalLander
from hilander_dist.training.episode_course import AVERAGED, EpisodeCourse, read_episode
from hilander_dist.training.episodes import Block
from tests.unit.training.made_episodes import write_episodes

CPU = torch.device("cpu")


def constant_score(model: RelationalLander, episode: Block) -> tuple[float, float]:
    return float(len(episode["label_N"])), 1.0


@pytest.fixture
def course(tmp_path: Path) -> EpisodeCourse:
    uris = write_episodes(tmp_path)
    model = RelationalModel(hidden=8)
    return EpisodeCourse(
        (tuple(uris[:3]), tuple(uris[3:])),
        ((uris[0],), (uris[4], uris[3])),
        model,
        RelationalTrain(),
        7,
        Inference(base_rate=0.25),
        constant_score,
    )


def test_sets_take_turns_and_each_lap_meets_every_episode(course: EpisodeCourse) -> None:
    places = [course.episode_of(place) for place in range(24)]
    first, second = places[::2], places[1::2]
    assert all(set(first[at : at + 3]) == set(course.training[0]) for at in range(0, 12, 3))
    assert all(set(second[at : at + 2]) == set(course.training[1]) for at in range(0, 12, 2))
    assert len({tuple(first[at : at + 3]) for at in range(0, 12, 3)}) > 1


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_workers_share_the_loss_of_a_step(course: EpisodeCourse, workers: int) -> None:
    model = course.new_model()
    shares = [course.loss_share(model, 4, rank, workers, CPU) for rank in range(workers)]
    total = sum(share.item() for share in shares)
    assert total == pytest.approx(course.loss_share(model, 4, 0, 1, CPU).item(), rel=1e-6)
    # A worker without an episode still has a gradient for the others to wait for.
    torch.stack([share.reshape(()) for share in shares]).sum().backward()  # type: ignore[no-untyped-call]
    assert all(parameter.grad is not None for parameter in model.parameters())


def train_three_steps(course: EpisodeCourse, model: torch.nn.Module, rank: int, workers: int) -> torch.Tensor:
    """The weights afterwards, one after another."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for step in range(3):
        optimizer.zero_grad()
        (course.loss_share(model, step, rank, workers, CPU) * workers).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return torch.cat([parameter.detach().reshape(-1) for parameter in model.parameters()])


def train_as_worker(rank: int, workers: int, course: EpisodeCourse, folder: str) -> None:
    torch.set_num_threads(1)
    wait = datetime.timedelta(seconds=60)
    meet = f"file://{folder}/meet"
    torch.distributed.init_process_group("gloo", init_method=meet, rank=rank, world_size=workers, timeout=wait)
    model = torch.nn.parallel.DistributedDataParallel(course.new_model())
    torch.save(train_three_steps(course, model, rank, workers), f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


def test_more_workers_than_episodes_of_a_step_train_together(course: EpisodeCourse, tmp_path: Path) -> None:
    # Forked from a process that has imported this module: three of their own would take three times as long to start.
    multiprocessing.set_forkserver_preload([__name__])
    torch.multiprocessing.start_processes(  # type: ignore[attr-defined, no-untyped-call]
        train_as_worker, (3, course, str(tmp_path)), nprocs=3, start_method="forkserver"
    )
    alone = train_three_steps(course, course.new_model(), 0, 1)
    for rank in range(3):
        torch.testing.assert_close(torch.load(tmp_path / f"{rank}.pt"), alone, rtol=1e-4, atol=1e-6)


def test_an_untrained_model_depends_on_the_seed_alone(course: EpisodeCourse) -> None:
    one, other = course.new_model().state_dict(), course.new_model().state_dict()
    assert all(one[key].equal(other[key]) for key in one)
    assert any(not one[key].equal(value) for key, value in replace(course, seed=8).new_model().state_dict().items())
    assert course.new_model().inference == Inference(base_rate=0.25)


def test_steps_lower_the_loss(course: EpisodeCourse) -> None:
    model = course.new_model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    losses = []
    for step in range(30):
        loss = course.loss_share(model, step, 0, 1, CPU)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        losses.append(loss.item())
    assert np.mean(losses[-5:]) < 0.8 * np.mean(losses[:5])


def test_validation_is_shared_by_workers(course: EpisodeCourse) -> None:
    model = course.new_model()
    whole, count = course.validate(model, 0, 1)
    assert count == 3
    assert whole.tolist() == [60 + 64 + 63, 3]
    parts = [course.validate(model, rank, 2)[0] for rank in range(2)]
    assert (parts[0] + parts[1]).tolist() == whole.tolist()


def test_the_learning_rate_rises_and_falls_to_nothing_for_one_set(course: EpisodeCourse) -> None:
    for one, least in ((course, 0.3), (replace(course, training=course.training[:1]), 0.0)):
        rates = [one.learning_rate(step, 100) for step in range(101)]
        assert rates[0] == pytest.approx(one.train.lr / 25)
        assert max(rates) == rates[30] == pytest.approx(one.train.lr)
        assert rates[100] == pytest.approx(least * one.train.lr, abs=1e-12)


def test_weights_are_averaged_for_several_sets(course: EpisodeCourse) -> None:
    assert course.averaged_from == AVERAGED
    assert replace(course, training=course.training[:1]).averaged_from == 1


def test_a_worker_keeps_what_it_has_read(course: EpisodeCourse) -> None:
    assert read_episode(course.training[0][0]) is read_episode(course.training[0][0])
