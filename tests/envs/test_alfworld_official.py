"""The layout of json_2.1.1, here with generated games in it."""

import json

import pytest

pytest.importorskip("alfworld")

from spark.envs.alfworld import Scenes
from spark.envs.alfworld.problem import GOAL_SLOT
from spark.envs.alfworld.source import AlfworldSource

SCENES = Scenes(max_receptacles=8, fill=0.3)


def write(folder, data, solvable=True):
    folder.mkdir(parents=True)
    grammar = data.grammar.replace(GOAL_SLOT, data.goal)
    game = {
        "pddl_domain": data.domain,
        "grammar": grammar,
        "pddl_problem": data.problem,
        "solvable": solvable,
    }
    trajectory = {
        "task_type": data.task_type,
        "pddl_params": data.params | {"mrecep_target": "", "object_sliced": False},
        "scene": {"scene_num": data.floor_plan},
    }
    (folder / "game.tw-pddl").write_text(json.dumps(game))
    (folder / "traj_data.json").write_text(json.dumps(trajectory))


@pytest.fixture
def root(tmp_path):
    generated = AlfworldSource(scenes=SCENES)
    for folder, split in (("train", "train"), ("valid_seen", "L0"), ("valid_unseen", "L1")):
        for number, task in enumerate(generated.tasks(split, 2)):
            write(tmp_path / folder / f"game-{number}" / "trial", generated.game(task).data)
    data = generated.game(generated.tasks("L2", 1)[0]).data
    write(tmp_path / "valid_unseen" / "held_out" / "trial", data)
    write(tmp_path / "train" / "look-movable" / "trial", data)
    write(tmp_path / "train" / "broken" / "trial", data, solvable=False)
    return tmp_path


def test_games_are_found_by_split_and_played(root):
    source = AlfworldSource(data=root)
    train = source.tasks("train", 5)
    assert sorted(set(train)) == ["train/game-0/trial", "train/game-1/trial"]
    assert source.tasks("L2", 1) == ["valid_unseen/held_out/trial"]
    assert all(task.startswith("valid_unseen/game") for task in source.tasks("L1", 2))
    text, info = source.make().reset(train[0])
    assert "Your task is to: " in text
    assert info["admissible"]
    for split in ("train", "L0", "L1", "L2"):
        assert source.expert(source.tasks(split, 1)[0], kind="planner").won


def test_same_game_as_the_generated_one(root):
    generated, official = AlfworldSource(scenes=SCENES), AlfworldSource(data=root)
    task = generated.tasks("train", 1)[0]
    assert generated.expert(task) == official.expert("train/game-0/trial")


def test_errors_name_the_remedy(root, tmp_path):
    with pytest.raises(ValueError, match="no-such-folder' does not exist; run `alfworld-download`"):
        AlfworldSource(data=tmp_path / "no-such-folder")
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(ValueError, match="holds no train or valid folder; run `alfworld-download`"):
        AlfworldSource(data=empty)
    (empty / "train").mkdir()
    with pytest.raises(ValueError, match="has no game of split train"):
        AlfworldSource(data=empty).tasks("train", 1)
    with pytest.raises(ValueError, match="'train/none' is not below"):
        AlfworldSource(data=root).make().reset("train/none")
    with pytest.raises(ValueError, match="exclude each other"):
        AlfworldSource(data=root, scenes=SCENES)
