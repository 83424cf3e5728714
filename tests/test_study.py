"""The study in small: arms, resume, the results file, the page; and its statistics."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import study, study_record, study_report, study_signal
from benchmarks.statistics import bootstrap, paired_p, pass_at_k
from benchmarks.study import Run, configured
from benchmarks.study_signal import Measure, compared, progress
from spark.recipes import METHODS, RECIPES
from spark.train.credit import credit
from spark.train.pack import pack
from spark.train.policy import token_logprobs

BASE = RECIPES["first_light_smoke"]()


def test_arms_may_have_settings_of_their_own() -> None:
    recipe = configured(BASE, "spark_paced+roots=2+lr=1e-4+pacing=first_come")
    assert (recipe.rollout.roots, recipe.train.lr, recipe.rollout.pacing) == (2, 1e-4, "first_come")
    assert configured(BASE, "tree_grpo") == METHODS["tree_grpo"](BASE)
    recipe = configured(BASE, "chain+scheme=node+kl=0.0+path=runs/start+train_games=16")
    assert (recipe.train.credit.scheme, recipe.train.loss.kl) == ("node", 0.0)
    assert (recipe.model.path, recipe.env.train_games) == ("runs/start", 16)
    with pytest.raises(ValueError, match="'temper' is no setting"):
        configured(BASE, "chain+temper=1")
    with pytest.raises(ValueError, match="unknown method 'chains'"):
        configured(BASE, "chains")
    run = Run(env="alfworld_smoke", arm="chain", seed=3, stop="seconds", budget=9.0)
    assert (run.recipe().budget_tokens, run.recipe().budget_seconds) == (None, 9.0)


def test_bootstrap_intervals() -> None:
    assert bootstrap([0.4] * 5) == pytest.approx((0.4, 0.4))
    low, high = bootstrap([0.0, 1.0] * 50)
    # a share of 100 coin flips: 0.5 +- 1.645 * 0.05
    assert abs(low - 0.418) < 0.02 and abs(high - 0.582) < 0.02
    assert bootstrap([0.1, 0.5, 0.2]) == bootstrap([0.1, 0.5, 0.2])


def test_one_seed_has_no_interval() -> None:
    assert study_report.interval([0.3]) == ""
    assert study_report.interval([0.3, 0.3]) == " [30.0%, 30.0%]"


def test_paired_test_by_hand() -> None:
    assert paired_p([0.5, 0.6, 0.7], [0.4, 0.4, 0.4]) == pytest.approx(2 / 8)
    assert paired_p([0.5, 0.3], [0.4, 0.4]) == pytest.approx(1.0)
    assert paired_p([1.0] * 5, [0.0] * 5) == pytest.approx(2 / 32)


def test_pass_at_k_by_hand() -> None:
    assert pass_at_k(0, 8, 4) == 0.0
    assert pass_at_k(1, 4, 1) == pytest.approx(0.25)
    assert pass_at_k(2, 4, 2) == pytest.approx(1 - (2 / 4) * (1 / 3))
    assert pass_at_k(1, 8, 8) == 1.0


def test_progress_counts_trees_to_find_a_direction() -> None:
    """Signal 1, noise 3, 10 tokens; with twice the noise, or as many trees alike, a quarter."""
    plain = [Measure(signal=1.0, square=9.0, tokens=10)] * 4
    noisy = [Measure(signal=1.0, square=36.0, tokens=10)] * 4
    scaled = [Measure(signal=3.0, square=81.0, tokens=10)] * 4
    half = [*plain[:1], *[Measure(signal=0.0, square=0.0, tokens=10)] * 3]
    assert progress(plain) == pytest.approx(1 / 90)
    assert compared(noisy, plain) == pytest.approx({"ratio": 0.25, "low": 0.25, "high": 0.25})
    assert compared(scaled, plain)["ratio"] == pytest.approx(1.0)
    assert progress(half) == pytest.approx(progress(plain) / 4)
    assert progress([Measure(signal=-1.0, square=9.0, tokens=10)]) == 0.0


@pytest.mark.slow
def test_gradients_of_trees_are_those_of_their_advantages() -> None:
    pytest.importorskip("alfworld")
    gradients = study_signal.Gradients("alfworld")
    tasks = gradients.session.source.tasks("train", 6, 5)
    recipe = configured(gradients.base, "chain")
    with gradients.session:
        direction = gradients.direction(tasks)
        trees = gradients.trees(recipe, tasks)
        measures = gradients.measures("chain", tasks, direction)
    assert float(direction.norm()) == pytest.approx(1.0, abs=1e-4)
    config = recipe.train.credit
    number = next(n for n, m in enumerate(measures) if m.square)
    row = pack([trees[number]], [credit(trees[number], config)], 100_000)[0]
    weights = gradients.model.state_dict()
    before = {name: value.clone() for name, value in weights.items()}

    def gain(step: float) -> float:
        """The weighted advantage of what was sampled, `step` along the direction."""
        at = 0
        for name, parameter in gradients.model.named_parameters():
            move = direction[at : at + parameter.numel()].view_as(parameter)
            parameter.data.copy_(before[name] + step * move)
            at += parameter.numel()
        logprobs = token_logprobs(gradients.model, row)[row.term_target]
        return float((row.weight * row.advantage * logprobs).sum()) / len(trees[number].leaves())

    slope = (gain(0.01) - gain(-0.01)) / 0.02
    assert measures[number].signal == pytest.approx(slope, rel=0.02, abs=1e-3)


@pytest.mark.slow
def test_the_study_in_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("alfworld")
    monkeypatch.setattr(study_record, "PASS_GAMES", 2)
    monkeypatch.setattr(study, "RUNS", tmp_path / "runs")
    # a process of its own would not see the patches
    monkeypatch.setattr(study, "start", study.play)
    arms = ("chain", "spark_paced")
    runs = [
        Run(env="alfworld_smoke", arm=arm, seed=s, stop="tokens", budget=5500, every=1, games=2)
        for s in range(2)
        for arm in arms
    ]
    with study.locked(runs[0].folder / "lock"):
        # as if another call played it
        path = study.study(runs, "small", "by a test", 1, tmp_path / "results", most=1)
    first = json.loads(path.read_text())["runs"]
    assert [(run["arm"], run["seed"]) for run in first] == [("spark_paced", 0)]
    path = study.study(runs, "small", "by a test", 1, tmp_path / "results")
    data = json.loads(path.read_text())
    assert data["runs"][1] == first[0]
    assert len(list((tmp_path / "runs").glob("start_*.json"))) == 1
    assert [(run["arm"], run["seed"]) for run in data["runs"]] == [(r.arm, r.seed) for r in runs]
    for run in data["runs"]:
        assert set(run["success"]) == {"L0", "L1", "L2"} == set(run["start"])
        assert run["tokens"]["generated"] >= 5500 and run["episodes"] > 0
        assert 0 < run["seconds"]["env"] < run["seconds"]["rollout"] * 40
        first, *_, last = run["curve"]
        assert (first["tokens"], first["success"]) == (0, run["start"]["L0"])
        assert last["tokens"] == run["tokens"]["generated"]
        assert last["success"] == run["success"]["L0"]
        costs = [point["seconds"] for point in run["curve"]]
        assert costs == sorted(costs)
        assert set(run["pass_at_k"]) == {"1", "2", "4", "8"}
    chain, paced = data["runs"][:2]
    assert chain["forks"] == 0 < paced["forks"] == sum(paced["triggers"]["by_turn"].values())
    assert chain["start"] == paced["start"]
    assert chain["pairs"] == {"0": [28 * chain["trees"]["trees"], chain["pairs"]["0"][1]]}
    assert len(paced["pairs"]) > 1
    assert chain["trees"]["leaves"] == chain["episodes"] == 8 * chain["trees"]["trees"]
    again = study.study(runs, "small", "by a test", 1, tmp_path / "results")
    assert json.loads(again.read_text())["runs"] == data["runs"], "finished runs are kept"
    page = tmp_path / "study.md"
    page.write_text("# Head\n<!-- study -->\nold")
    study_report.write(tmp_path / "results", page)
    text = page.read_text()
    assert text.startswith("# Head") and "old" not in text
    assert "| chain | 2 |" in text and "p=" in text and "pass@8" in text and "both outcomes" in text
    assert (tmp_path / "study_small_tokens.svg").read_text().count("<polyline") == 2
