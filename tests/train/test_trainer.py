"""The trainer: imitation, optimiser state, errors, adapters."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from random_trees import random_tree, tiny_model
from transformers import GPT2Config, GPT2LMHeadModel

from spark.recipes.config import LoraConfig
from spark.recipes.policy import full_state, with_lora
from spark.train import policy
from spark.train.attention import use_tree_attention
from spark.train.config import LossConfig, SftConfig
from spark.train.credit import CreditConfig, Term, credit
from spark.train.loss import policy_loss
from spark.train.muon import MuonAdamW
from spark.train.pack import Row, pack
from spark.train.policy import token_logprobs, token_loss
from spark.train.sft import fit
from spark.train.trainer import TrainingError, TreeTrainer, training_arguments
from spark_kernels.head_loss import HeadLoss, Loss, head_loss
from spark_kernels.head_loss.reference import head_loss_reference


def demonstrations() -> list[Any]:
    trees = [random_tree(seed, 8, constrained=False) for seed in range(3)]
    return [(tree, [[Term(advantage=1.0, weight=1.0)]] * len(tree.nodes)) for tree in trees]


def test_imitation_learns_its_demonstrations(tmp_path: Path) -> None:
    losses: list[float] = []
    config = SftConfig(steps=60, batch_tokens=80, bf16=False)
    fit(
        tiny_model(),
        demonstrations(),
        config,
        seed=0,
        folder=tmp_path,
        on_step=lambda step, loss: losses.append(loss),
    )
    assert len(losses) == 60
    assert sum(losses[-3:]) < 0.5 * sum(losses[:3])


def test_imitation_repeats_for_a_seed(tmp_path: Path) -> None:
    def weights() -> dict[str, torch.Tensor]:
        model = tiny_model()
        config = SftConfig(steps=4, batch_tokens=60)
        fit(model, demonstrations(), config, seed=3, folder=tmp_path)
        return model.state_dict()

    first, second = weights(), weights()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_muon_is_for_hidden_matrices_whatever_tables_are_called() -> None:
    config = GPT2Config(vocab_size=30, n_positions=16, n_embd=8, n_layer=1, n_head=2)
    model = GPT2LMHeadModel(config)
    muon, adamw = MuonAdamW(model, matrix_lr=0.02, lr=1e-3).parts
    names = {parameter: name for name, parameter in model.named_parameters()}
    matrices, others = (
        {names[p] for group in part.param_groups for p in group["params"]} for part in (muon, adamw)
    )
    assert {"transformer.wte.weight", "transformer.wpe.weight"} <= others
    assert "transformer.h.0.attn.c_attn.weight" in matrices
    assert not any(name.endswith("bias") for name in matrices)


def test_muon_adamw_resumes_exactly() -> None:
    def step(model: torch.nn.Module, optimizer: MuonAdamW, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        for parameter in model.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        optimizer.step()

    straight, model = tiny_model(), tiny_model()
    optimizer = MuonAdamW(straight, matrix_lr=0.02, lr=1e-3)
    for seed in range(4):
        step(straight, optimizer, seed)
    first = MuonAdamW(model, matrix_lr=0.02, lr=1e-3)
    for seed in range(2):
        step(model, first, seed)
    resumed = MuonAdamW(model, matrix_lr=0.5, lr=0.5)
    resumed.load_state_dict(first.state_dict())
    for seed in range(2, 4):
        step(model, resumed, seed)
    for left, right in zip(straight.parameters(), model.parameters(), strict=True):
        assert torch.equal(left, right)
    resumed.param_groups[0]["lr"] = 0.0
    assert resumed.parts[0].param_groups[0]["lr"] == 0.0, "a schedule must reach the parts"


def test_a_loss_that_is_not_finite_stops_training(tmp_path: Path) -> None:
    (row,) = pack([tree := random_tree(0)], [credit(tree, CreditConfig())], 1000)
    trainer = TreeTrainer(
        tiny_model(),
        training_arguments(tmp_path, steps=3, lr=1e-3, seed=0),
        batches=lambda step: [{"row": row}],
        loss=lambda example: lambda logprobs, entropy, part: logprobs.sum() * float("nan"),
    )
    told = "loss is nan at step 0: start anew, in another folder, with a learning rate below 0.001"
    with pytest.raises(TrainingError, match=told):
        trainer.train()


def test_rows_of_a_step_accumulate(tmp_path: Path) -> None:
    """One step on three rows moves the weights like one step on the row of all three."""

    def after(max_tokens: int) -> dict[str, torch.Tensor]:
        model = tiny_model()
        trees = [random_tree(seed, 10) for seed in range(3)]
        rows = pack(trees, [credit(tree, CreditConfig()) for tree in trees], max_tokens)
        total = sum(float(row.weight.sum()) for row in rows)

        def loss(example: dict[str, Any]) -> Loss:
            return lambda logprobs, entropy, part: (
                -(example["row"].part(part).weight * logprobs).sum() / total
            )

        trainer = TreeTrainer(
            model,
            training_arguments(tmp_path, steps=1, lr=0.1, seed=0, optim="sgd", max_grad_norm=0.0),
            batches=lambda step: [{"row": row} for row in rows],
            loss=loss,
        )
        trainer.train()
        return model.state_dict()

    parts, whole = after(40), after(10_000)
    for name, tensor in whole.items():
        torch.testing.assert_close(parts[name], tensor, atol=1e-6, rtol=1e-5)


def test_published_weights_contain_the_adapters() -> None:
    model = tiny_model()
    plain = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    tuned = with_lora(model, LoraConfig(rank=2, alpha=8), seed=0)
    for name, parameter in tuned.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    tokens = torch.tensor([[1, 5, 7, 2]])
    with torch.no_grad():
        expected = tuned(tokens).logits
        state = full_state(tuned)
        assert set(state) == set(plain)
        assert any(not torch.equal(state[name], plain[name]) for name in plain)
        copy = tiny_model(seed=5)
        copy.load_state_dict(state)
        torch.testing.assert_close(copy(tokens).logits, expected, atol=1e-5, rtol=1e-5)
        assert torch.equal(tuned(tokens).logits, expected), "publishing changes no weight"


def test_logits_exist_one_chunk_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    from spark_kernels.head_loss import op

    model = tiny_model()
    use_tree_attention(model)
    (row,) = pack_all(4)
    whole = token_logprobs(model, row)
    sizes: list[int] = []

    def seen(logits: torch.Tensor, *inputs: Any) -> Any:
        sizes.append(len(logits))
        return statistics(logits, *inputs)

    statistics = op.statistics
    monkeypatch.setattr(op, "statistics", seen)
    monkeypatch.setattr(policy, "head_loss", partial(head_loss, chunk=16))
    torch.testing.assert_close(token_logprobs(model, row), whole, atol=1e-6, rtol=0)
    assert max(sizes) == 16 and len(sizes) == -(-len(row.targets) // 16)


def pack_all(count: int) -> list[Row]:
    trees = [random_tree(seed, 12) for seed in range(count)]
    return pack(trees, [credit(tree, CreditConfig()) for tree in trees], 10_000)


@pytest.mark.parametrize("family", ["qwen3", "gemma2"])
@pytest.mark.parametrize("chunk", [7, 4096])
def test_loss_in_chunks_equals_the_loss_of_all_logits(
    family: str, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Loss, scores and every gradient against torch's own, constrained draws included."""
    model = tiny_model(family=family)
    use_tree_attention(model)
    (row,) = pack_all(4)
    assert len(row.allowed_target) > 20
    logprobs = token_logprobs(model, row, 0.8)
    old = logprobs + 0.3 * torch.randn(len(logprobs))
    reference = logprobs + 0.1 * torch.randn(len(logprobs))
    objective = policy_loss(old, reference, row, LossConfig(entropy=0.01))
    monkeypatch.setattr(policy, "head_loss", partial(head_loss, chunk=chunk))
    loss = token_loss(model, row, objective, 0.8)
    loss.loss.backward()
    got = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    monkeypatch.setattr(policy, "head_loss", plain)
    want = token_loss(model, row, objective, 0.8)
    want.loss.backward()
    torch.testing.assert_close(loss, want, rtol=1e-5, atol=1e-5)
    for name, parameter in model.named_parameters():
        if name in got:
            torch.testing.assert_close(got[name], parameter.grad, rtol=1e-5, atol=1e-5)
    assert got["model.layers.0.self_attn.q_proj.weight"].abs().max() > 1e-4


def plain(*inputs: Any, **options: Any) -> HeadLoss:
    """The whole head at once, gradients by torch."""
    return HeadLoss(*head_loss_reference(*inputs, **options))


def test_an_adapted_head_is_refused() -> None:
    model = tiny_model()
    use_tree_attention(model)
    model.lm_head = torch.nn.Linear(4, 4, bias=True)
    with pytest.raises(ValueError, match="LM head must be a linear layer without bias"):
        token_logprobs(model, pack_all(1)[0])


@pytest.mark.parametrize("bf16", [False, True])
def test_training_computes_at_the_precision_it_was_told(bf16: bool, tmp_path: Path) -> None:
    """The layers see it, the weights and their gradients stay float32, the loss hardly moves."""
    (row,) = pack([tree := random_tree(0)], [credit(tree, CreditConfig())], 1000)
    seen: set[torch.dtype] = set()
    losses: list[float] = []

    def likelihood(logprobs: torch.Tensor, entropy: torch.Tensor, part: slice) -> torch.Tensor:
        return -logprobs.mean()

    trainer = TreeTrainer(
        model := tiny_model(),
        training_arguments(tmp_path, steps=2, lr=1e-3, seed=0, bf16=bf16),
        batches=lambda step: [{"row": row}],
        loss=lambda example: likelihood,
        on_step=lambda step, loss, sums: losses.append(loss),
    )
    model.get_decoder().layers[0].mlp.gate_proj.register_forward_hook(
        lambda module, inputs, output: seen.add(output.dtype)
    )
    exact = -token_logprobs(model, row).mean().item()
    seen.clear()
    trainer.train()
    assert seen == {torch.bfloat16 if bf16 else torch.float32}
    assert {each.dtype for each in model.parameters()} == {torch.float32}
    assert losses[0] == pytest.approx(exact, abs=2e-2 if bf16 else 1e-6)
    assert losses[1] < losses[0]
