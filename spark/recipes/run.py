"""The experiment: evaluate the start, train every arm from it, evaluate again, report."""

from __future__ import annotations

import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from spark.recipes.arm import ArmRun
from spark.recipes.check import check
from spark.recipes.config import ModelConfig, Recipe
from spark.recipes.events import OnProgress, Phase, Progress, ignore
from spark.recipes.journal import Journal, as_json, changed_names, read_json, write_json
from spark.recipes.policy import load_policy, save_policy
from spark.recipes.session import Session
from spark.train.team import Team, join

SCHEMA = 1
BEGUN = "recipe.json"
"""Where a run says what it was started with."""


def train(
    recipe: Recipe,
    run_dir: Path,
    *,
    resume: bool = False,
    on_progress: OnProgress = ignore,
    start: dict[str, float] | None = None,
) -> dict[str, Any]:
    """Run `recipe` into `run_dir` and return what summary.json holds.

    `start` is the success of the start by split, where it is known already: those splits are not
    evaluated again before training.

    Interrupted at any moment, it goes on from the last checkpoint with `resume=True` and ends
    with the result of an uninterrupted run. Started by torchrun or `accelerate launch`, the
    processes train together, whatever their number; the first one rolls out, evaluates and writes.
    Raises ValueError when `run_dir` holds a run and `resume` is False, holds none to resume, or one
    that was started with another recipe. A run that fails before its start is evaluated is none.
    """
    team = join()
    known, told = start or {}, on_progress if team.leads else ignore
    return _Experiment(recipe, run_dir, resume, told, known, team).run()


class _Experiment:
    """A run in progress; what is finished is in `state`, which is saved after every phase."""

    def __init__(
        self,
        recipe: Recipe,
        run_dir: Path,
        resume: bool,
        on_progress: OnProgress,
        start: dict[str, float],
        team: Team,
    ) -> None:
        if team.sharded and recipe.train.report_to != "none":
            raise ValueError(
                f"train.report_to={recipe.train.report_to!r} has no effect under torchrun: leave "
                'it "none"; metrics.jsonl has the same numbers'
            )
        if not recipe.rollout.temperature:
            raise ValueError(
                "rollout.temperature=0: the leaves of a tree would be alike and teach nothing; "
                "train with a temperature > 0"
            )
        if resume and team.leads and not (run_dir / BEGUN).exists():
            raise ValueError(
                f"run_dir={run_dir} holds no run to resume; leave resume out to start one"
            )
        self.recipe, self.team = recipe, team
        self.journal = Journal(run_dir)
        self.state = team.share(self._open_state(resume, start) if team.leads else None)
        self.on_progress = on_progress
        self.started = time.perf_counter()
        self.wall_before = float(self.state["wall_s"])

    def _open_state(self, resume: bool, start: dict[str, float]) -> dict[str, Any]:
        """Return the state of the run; a fresh one where nothing was finished before."""
        folder, state = self.journal.folder, self.journal.read_state()
        if not state:
            write_json(folder / BEGUN, asdict(self.recipe))
            return {"wall_s": 0.0, "before": dict(start), "arms": {}}
        if not resume:
            raise ValueError(f"{folder} holds a run; add --resume, or choose another --run_dir")
        if other := changed_names(read_json(folder / BEGUN), as_json(asdict(self.recipe))):
            raise ValueError(
                f"{folder} was started with other settings ({', '.join(other)}; {BEGUN} has them); "
                "resume it with the same ones, or choose another --run_dir"
            )
        return state

    def run(self) -> dict[str, Any]:
        """Do what is not done yet."""
        self._report(phase="load")
        model, tokenizer = load_policy(self.recipe.model)
        if not self.team.leads:
            for arm in self.recipe.arms:
                self._train_arm(arm, None, model, tokenizer)
            return dict(self.team.share(None))
        check(self.recipe, model)
        tokenizer.save_pretrained(self.journal.folder / "tokenizer")
        with Session(self.recipe, model, tokenizer) as session:
            session.prepare()
            self._evaluate_start(session)
            # from now on the folder holds a run, whatever interrupts it
            self._save_state()
            for arm in self.recipe.arms:
                self._train_arm(arm, session, model, tokenizer)
                self._evaluate_arm(arm, session)
        self._save_state()
        summary = self._summary(sum(parameter.numel() for parameter in model.parameters()))
        write_json(self.journal.folder / "summary.json", summary)
        self._report(phase="done")
        return dict(self.team.share(summary))

    def _train_arm(
        self,
        arm: str,
        session: Session | None,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
    ) -> None:
        """Train `arm` from the start and save it."""
        record = self.state["arms"].setdefault(arm, {"steps": 0, "after": {}})
        if "account" in record:
            return
        on_phase = self._on_phase if session else lambda arm, phase: None
        arm_run = ArmRun(self.recipe, arm, model, session, self.journal, on_phase, self.team)
        arm_run.run()
        weights = arm_run.weights()
        record |= {"steps": arm_run.step, "account": asdict(arm_run.account)}
        if session:
            save_policy(model, tokenizer, self._final(arm), weights)
            self._save_state()

    def _final(self, arm: str) -> Path:
        """Return where the trained policy of `arm` is saved."""
        return self.journal.folder / "checkpoints" / arm / "final"

    def _evaluate_arm(self, arm: str, session: Session) -> None:
        """Evaluate the trained `arm`."""
        record = self.state["arms"][arm]
        trained, _ = load_policy(ModelConfig(path=str(self._final(arm))))
        session.publish(dict(trained.state_dict()), record["steps"])
        for split in self.recipe.eval.splits:
            if split not in record["after"]:
                self._evaluate(session, split, record["after"], [arm], record["steps"])

    def _evaluate_start(self, session: Session) -> None:
        """Evaluate the weights that every arm starts from."""
        for split in self.recipe.eval.splits:
            if split not in self.state["before"]:
                self._evaluate(session, split, self.state["before"], list(self.recipe.arms), 0)

    def _evaluate(
        self, session: Session, split: str, results: dict[str, float], arms: list[str], step: int
    ) -> None:
        """Add the success on `split` to `results` and write it down for `arms`."""
        arm = arms[0] if len(arms) == 1 else None
        self._report(phase="evaluate", arm=arm, step=step, split=split)
        results[split] = session.evaluate(split)
        for name in arms:
            values = {f"success_{split}": results[split]}
            self.journal.add_metrics(arm=name, step=step, phase="evaluate", **values)
        self._save_state()
        self._report(phase="evaluate", arm=arm, step=step, split=split, success=results[split])

    def _on_phase(self, arm: ArmRun, phase: Phase) -> None:
        """Show where `arm` stands, and evaluate it on its way where that is wanted."""
        every = self.recipe.eval.every
        # after a rollout the engine still has the weights that made it
        if phase == "rollout" and every and arm.step and arm.step % every == 0:
            self._add_to_curve(arm)
        self._report(
            phase=phase,
            arm=arm.arm,
            step=arm.step,
            success=self.state["before"].get("L0"),
            tokens_per_s=arm.tokens_per_s,
            reused_share=arm.account.reused_share,
            forks=arm.account.forks,
            spent=arm.spent,
        )

    def _add_to_curve(self, arm: ArmRun) -> None:
        """Write down the success of the weights that `arm` has now, and what they cost."""
        split = self.recipe.eval.curve
        assert arm.session is not None
        self.journal.add_metrics(
            arm=arm.arm,
            step=arm.step,
            phase="curve",
            **{f"curve_{split}": arm.session.evaluate(split)},
            trained_on_tokens=arm.tokens_before,
            trained_on_seconds=arm.seconds_before,
        )

    def _report(self, *, phase: Phase, spent: float = 0.0, **values: Any) -> None:
        """Send a `Progress`; the budgets of all arms measure how much is done."""
        finished = sum("account" in record for record in self.state["arms"].values())
        done = (min(spent, 1.0) + finished) / len(self.recipe.arms)
        share = 1.0 if phase == "done" else done
        elapsed = self._wall_s()
        eta = elapsed / share * (1 - share) if share > 0.02 else None
        self.on_progress(Progress(phase=phase, done_share=share, eta_s=eta, **values))

    def _wall_s(self) -> float:
        """Return the seconds of work so far, earlier sessions of the run included."""
        return self.wall_before + time.perf_counter() - self.started

    def _save_state(self) -> None:
        self.state["wall_s"] = self._wall_s()
        self.journal.write_state(self.state)

    def _summary(self, parameters: int) -> dict[str, Any]:
        """Return the summary of the finished run."""
        return {
            "schema": SCHEMA,
            "model_params": parameters,
            "seed": self.recipe.seed,
            "wall_s": self.state["wall_s"],
            "arms": {
                arm: record["account"]
                | {"success_before": self.state["before"], "success_after": record["after"]}
                for arm, record in self.state["arms"].items()
            },
        }
