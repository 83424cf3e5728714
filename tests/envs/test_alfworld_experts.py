import pytest

pytest.importorskip("alfworld")

from spark.envs.alfworld import TASK_TYPES, Scenes
from spark.envs.alfworld.source import AlfworldSource


@pytest.fixture(scope="module", params=TASK_TYPES)
def episodes(request):
    """Return (task type, handcoded episodes, planner's episodes) over ten games."""
    other = next(name for name in TASK_TYPES if name != request.param)
    scenes = Scenes(task_types=(request.param,), held_out_types=(other,), max_receptacles=12)
    source = AlfworldSource(scenes=scenes)
    tasks = source.tasks("train", 10, seed=2)
    handcoded = [source.expert(task) for task in tasks]
    planned = [source.expert(task, kind="planner") for task in tasks[:4]]
    return request.param, handcoded, planned


def test_win_rates(episodes, record_property):
    task_type, handcoded, planned = episodes
    rate = sum(episode.won for episode in handcoded) / len(handcoded)
    record_property("handcoded_win_rate", f"{task_type}: {rate}")
    assert rate >= 0.8
    assert all(episode.won for episode in planned)
    assert all(len(episode.steps) <= 50 for episode in handcoded)


def test_planner_is_shorter_and_never_explores(episodes):
    _, handcoded, planned = episodes
    both = [(a, b) for a, b in zip(handcoded, planned, strict=False) if a.won]
    assert both
    assert all(len(plan.steps) <= len(search.steps) for search, plan in both)
    assert not any(step.explorative for plan in planned for step in plan.steps)


def test_explorative_steps_are_searches(episodes):
    task_type, handcoded, _ = episodes
    steps = [step for episode in handcoded for step in episode.steps]
    searches = [step for step in steps if step.explorative]
    assert 0.2 < len(searches) / len(steps) < 0.7
    for step in searches:
        assert step.action.startswith("go to ")
        assert step.subgoal.startswith("find ")
        thing = step.subgoal.removeprefix("find ")
        seen = step.observation.partition("you see")[2].partition("Your task")[0]
        assert f" {thing} " not in seen
    if task_type != "look_at_obj_in_light":
        assert all(step.action in step.admissible and step.observation for step in steps)


def test_episodes_repeat():
    source, again = AlfworldSource(), AlfworldSource()
    task = source.tasks("train", 1, seed=8)[0]
    assert source.expert(task, seed=3) == again.expert(task, seed=3)


def test_episodes_in_parallel_are_the_same():
    source = AlfworldSource(scenes=Scenes(max_receptacles=8))
    tasks = source.tasks("train", 18, seed=8)
    alone = list(source.experts(tasks, workers=1, max_steps=12))
    assert list(source.experts(tasks, workers=2, max_steps=12)) == alone
    assert len(alone) == 18
