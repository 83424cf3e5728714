"""A run for torchrun: `sharded_run.py STEPS FIRST [--load DIR] [--save DIR]`; prints losses."""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

import torch
from random_trees import random_tree, tiny_model
from torch import Tensor

from spark.train.credit import CreditConfig, credit
from spark.train.distributed import ShardedTrainer, join, shared_out
from spark.train.pack import Row, pack


def loss(logprobs: Tensor, row: Row) -> Tensor:
    return -(row.weight * (row.advantage + 1) * logprobs[row.term_target]).sum()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("steps", type=int)
    parser.add_argument("first", type=int)
    parser.add_argument("--load", type=Path)
    parser.add_argument("--save", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    rank, world = join()
    trainer = ShardedTrainer(tiny_model(), partial(torch.optim.AdamW, lr=1e-2))
    if args.load:
        trainer.load(args.load)
    for step in range(args.first, args.first + args.steps):
        # three trees: with two ranks one of them has more rows than the other
        trees = [random_tree(10 * step + k, 6 + 4 * k) for k in range(3)]
        own = [trees[index] for index in shared_out(trees, world)[rank]]
        rows = pack(own, [credit(tree, CreditConfig()) for tree in own], 40)
        value = trainer.forward_backward(rows, loss)
        norm = trainer.optim_step()
        if rank == 0:
            print(f"loss {value:.6f} {norm:.5f}", flush=True)
    if args.save:
        trainer.save(args.save)
    state = trainer.full_state()
    if rank == 0:
        print("weights", sum(float(tensor.double().abs().sum()) for tensor in state.values()))


if __name__ == "__main__":
    main()
