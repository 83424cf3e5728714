"""The random numbers are the published Philox4x32-10, so any implementation can reproduce them."""

import torch

from spark_kernels.score.philox import uniform, words


def test_known_answers() -> None:
    # from the Random123 distribution: counter and key all zero
    zeros = torch.zeros(1, dtype=torch.int64)
    assert [hex(int(w)) for w in words(zeros, zeros)] == [
        "0x6627e8d5",
        "0xe169c58d",
        "0xbc57ac4c",
        "0x9b00dbd8",
    ]


def test_uniform_is_uniform() -> None:
    u = uniform(torch.arange(20_000) % 7, torch.arange(20_000))
    assert u.min() >= 0 and u.max() < 1
    assert abs(u.mean() - 0.5) < 0.01 and abs(u.var() - 1 / 12) < 0.005
    assert len(u.unique()) == len(u)
