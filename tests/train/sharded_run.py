"""A run for torchrun: `sharded_run.py STEPS FOLDER [--load DIR]`; prints losses, saves its end."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from random_trees import random_tree, tiny_model
from torch import Tensor

from spark.recipes.config import LoraConfig
from spark.recipes.policy import full_state, with_lora
from spark.train.credit import CreditConfig, credit
from spark.train.distributed import ShardedTrainer
from spark.train.pack import Row
from spark.train.shares import own_rows
from spark.train.team import join
from spark.train.trainer import training_arguments
from spark_kernels.head_loss import Loss

TEAM = join()


def examples(step: int) -> list[dict[str, Any]]:
    """Return this process's rows of three trees: one of two has more of them than the other."""
    trees = [random_tree(10 * step + k, 6 + 4 * k) for k in range(3)]
    graded = [(tree, credit(tree, CreditConfig())) for tree in trees]
    rows, total, _ = own_rows(graded, TEAM, 40)
    return [{"row": row, "total": total} for row in rows]


def loss(example: dict[str, Any]) -> Loss:
    def share(logprobs: Tensor, entropy: Tensor, part: slice) -> Tensor:
        row: Row = example["row"].part(part)
        value = -(row.weight * (row.advantage + 1) * logprobs[row.term_target]).sum()
        return value / example["total"]

    return share


def logs(logprobs: Tensor, example: dict[str, Any]) -> dict[str, Tensor]:
    return {"tokens": torch.tensor(len(logprobs))}


def tell(step: int, value: float, sums: dict[str, float]) -> None:
    if TEAM.leads:
        print(f"loss {value:.6f} {sums['tokens']}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("steps", type=int)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--load", type=Path)
    parser.add_argument("--lora", action="store_true")
    parser.add_argument("--save-first", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(1)
    model: Any = tiny_model()
    model = with_lora(model, LoraConfig(rank=2, alpha=8), seed=0) if args.lora else model
    trainer = ShardedTrainer(
        model,
        training_arguments(args.folder, steps=args.steps, lr=1e-2, seed=0),
        batches=examples,
        loss=loss,
        logs=logs,
        on_step=tell,
    )
    if args.save_first:
        trainer.save(args.folder / "checkpoint-0")
    trainer.train(str(args.load) if args.load else None)
    trainer.save(args.folder / f"checkpoint-{args.steps}")
    state = full_state(model, trainer.weights)
    scores = [float(trainer.logprobs(each["row"]).sum()) for each in examples(0)]
    total = sum(sum(own) for own in TEAM.gather(scores))
    if TEAM.leads:
        print("weights", sum(float(tensor.double().abs().sum()) for tensor in state.values()))
        print("scores", total)


if __name__ == "__main__":
    main()
