"""Which models run embedded, how they are loaded, changed and found broken."""

from __future__ import annotations

import asyncio

import pytest
import torch
from tiny_models import FAMILIES, VOCAB, greedy, prompt, tiny, tokenizer
from transformers import AutoConfig, AutoModelForCausalLM

from spark import LocalEngine
from spark.engines.base import EngineError, Sample, SamplingParams

GREEDY = SamplingParams(max_tokens=10, temperature=0.0)


def copy_of(family: str) -> torch.nn.Module:
    """Return a model of its own, to be changed."""
    source = tiny(family)
    model = AutoModelForCausalLM.from_config(source.config, attn_implementation="eager").eval()
    model.load_state_dict(source.state_dict())
    return model


async def run(engine: LocalEngine, tokens: list[int], params: SamplingParams = GREEDY) -> Sample:
    seq = await engine.open(tokens)
    try:
        return await engine.sample(seq, params)
    finally:
        await engine.release(seq)


def is_traced(engine: LocalEngine) -> bool:
    return isinstance(engine._core._runner._step, torch.jit.ScriptModule)


def test_nan_logits_fail_one_request_and_others_go_on() -> None:
    model, bad = copy_of("qwen3"), 13
    with torch.no_grad():
        model.model.embed_tokens.weight[bad] = float("nan")
    clean = [token for token in prompt(12, 1) if token != bad]

    async def main() -> None:
        async with LocalEngine(model, num_blocks=32, block_size=8) as engine:
            failed, fine = await asyncio.gather(
                run(engine, [*clean, bad, *clean]), run(engine, clean), return_exceptions=True
            )
            assert isinstance(failed, EngineError)
            assert "first non-finite output: model.embed_tokens" in str(failed)
            assert isinstance(fine, Sample)
            assert fine.tokens == greedy("qwen3", clean, 10)
            assert engine.stats()["blocks_in_use"] == 0

    asyncio.run(main())


def test_nan_weights_name_the_layer() -> None:
    model = copy_of("llama")
    with torch.no_grad():
        model.model.layers[2].mlp.up_proj.weight[0, 0] = float("nan")

    async def main() -> None:
        async with LocalEngine(model, num_blocks=32) as engine:
            with pytest.raises(EngineError, match=r"model\.layers\.2\.mlp\.up_proj"):
                await run(engine, prompt(5))

    asyncio.run(main())


def test_update_weights_changes_what_is_sampled() -> None:
    model = copy_of("qwen3")
    tokens = prompt(9, 2)
    changed = {
        name: tensor + 0.1 * torch.randn(tensor.shape, generator=torch.Generator().manual_seed(1))
        for name, tensor in model.state_dict().items()
        if "mlp" in name
    }

    async def main() -> None:
        async with LocalEngine(model, num_blocks=32) as engine:
            old = await run(engine, tokens)
            for wrong, match in (({"nose": torch.zeros(1)}, "nose"), (short, "shape of")):
                with pytest.raises(ValueError, match=match):
                    await engine.update_weights(wrong, 1)
            assert (await run(engine, tokens)).tokens == old.tokens
            await engine.update_weights(changed, 7)
            new = await run(engine, tokens)
            ids = torch.tensor([tokens])
            want = model.generate(
                ids, attention_mask=torch.ones_like(ids), max_new_tokens=10, do_sample=False
            )
            assert new.tokens == want[0, 9:].tolist() != old.tokens
            assert (old.weight_version, new.weight_version) == (0, 7)

    name = next(iter(changed))
    short = {**changed, name: changed[name][:1]}
    asyncio.run(main())


def test_lora_layers_run_and_follow_their_weights() -> None:
    # comes with the extra `train`
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=4, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
    model = peft.get_peft_model(copy_of("qwen3"), config).eval()
    ids = torch.tensor([prompt(9)])

    def want() -> list[int]:
        mask = torch.ones_like(ids)
        out = model.generate(input_ids=ids, attention_mask=mask, max_new_tokens=10, do_sample=False)
        return out[0, 9:].tolist()

    engine = LocalEngine(model, num_blocks=16)
    first = asyncio.run(run(engine, prompt(9))).tokens
    assert first == want() != greedy("qwen3", prompt(9), 10)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.mul_(-3)
    assert asyncio.run(run(engine, prompt(9))).tokens == want() != first


def test_the_module_keeps_its_own_attention() -> None:
    model = copy_of("qwen3")
    ids = torch.tensor([prompt(20)])
    before = model(ids).logits
    engine = LocalEngine(model, num_blocks=16)
    asyncio.run(run(engine, prompt(20)))
    model.train()
    assert model.config._attn_implementation == "eager"
    after = model(ids).logits
    assert torch.equal(after, before)
    after.sum().backward()
    assert model.lm_head.weight.grad is not None


@pytest.mark.parametrize("family", FAMILIES)
def test_dense_models_are_traced(family: str) -> None:
    assert is_traced(LocalEngine(tiny(family), num_blocks=4))


def test_control_flow_that_depends_on_data_runs_eagerly() -> None:
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        "mixtral",
        vocab_size=VOCAB,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        num_local_experts=4,
        max_position_embeddings=128,
        bos_token_id=None,
        eos_token_id=None,
    )
    model = AutoModelForCausalLM.from_config(config, experts_implementation="eager").eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=0.3)
    prompts = [prompt(n, 3) for n in (3, 8, 17)]

    async def main() -> list[Sample]:
        async with LocalEngine(model, num_blocks=32) as engine:
            assert not is_traced(engine)
            return await asyncio.gather(*(run(engine, tokens) for tokens in prompts))

    for tokens, out in zip(prompts, asyncio.run(main()), strict=True):
        ids = torch.tensor([tokens])
        want = model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=10, do_sample=False
        )
        assert out.tokens == want[0, len(tokens) :].tolist()


def test_a_model_that_cannot_be_paged_is_refused() -> None:
    config = AutoConfig.for_model("mamba", vocab_size=32, hidden_size=16, num_hidden_layers=1)
    with pytest.raises(ValueError, match="attention interface"):
        LocalEngine(AutoModelForCausalLM.from_config(config), num_blocks=4)


def test_sizes_and_vocabulary_are_checked_at_construction(tmp_path) -> None:
    for name in ("num_blocks", "block_size", "max_batched_tokens"):
        with pytest.raises(ValueError, match=f"{name} must be >= 1, got 0"):
            LocalEngine(tiny("llama"), **{"num_blocks": 4, name: 0})
    with pytest.raises(ValueError, match=r"dtype.*model\.to"):
        LocalEngine(tiny("llama"), num_blocks=4, dtype=torch.bfloat16)
    many = tokenizer().__class__(tokenizer_object=tokenizer().backend_tokenizer)
    many.add_tokens([f"<extra{i}>" for i in range(VOCAB)])
    with pytest.raises(ValueError, match=f"tokenizer has {len(many)} tokens.*{VOCAB}"):
        LocalEngine(tiny("llama"), num_blocks=4, tokenizer=many)


def test_a_device_that_is_not_there_is_named() -> None:
    for device in ("cuda:99", "meta"):
        with pytest.raises(ValueError, match=f"device='{device}'.*cpu"):
            LocalEngine("nowhere", num_blocks=4, device=device)


def test_a_path_is_loaded(tmp_path) -> None:
    tiny("qwen3").save_pretrained(tmp_path)

    async def main() -> list[int]:
        async with LocalEngine(tmp_path, num_blocks=16, dtype=torch.float32) as engine:
            return (await run(engine, prompt(9))).tokens

    assert asyncio.run(main()) == greedy("qwen3", prompt(9), 10)
