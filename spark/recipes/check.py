"""What only the model, or a library, can judge of a recipe, before anything is spent on it."""

from __future__ import annotations

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.integrations import get_reporting_integration_callbacks

from spark.recipes.config import ModelConfig, Recipe
from spark.recipes.policy import load_policy, with_lora
from spark.train.policy import check_head
from spark.train.trainer import base_model


def check(recipe: Recipe, model: PreTrainedModel) -> None:
    """Raise ValueError for settings of `recipe` that would end its training at its first step."""
    _check_logger(recipe.train.report_to)
    _check_adapters(recipe, model)
    if recipe.train.reference is not None:
        _check_reference(recipe.train.reference, recipe.train.loss.kl, model)


def _check_logger(name: str) -> None:
    try:
        for logger in get_reporting_integration_callbacks([name]) if name != "none" else ():
            logger()
    except (ValueError, RuntimeError) as error:
        raise ValueError(f"train.report_to={name!r}: {error}") from error


def _check_adapters(recipe: Recipe, model: PreTrainedModel) -> None:
    lora = recipe.model.lora
    if not lora.rank:
        return
    # the same modules without weights
    with torch.device("meta"):
        empty = AutoModelForCausalLM.from_config(model.config)
    try:
        check_head(base_model(with_lora(empty, lora, recipe.seed)))
    except ValueError as error:
        raise ValueError(f"model.lora.targets={lora.targets}: {error}") from error


def _check_reference(path: str, kl: float, model: PreTrainedModel) -> None:
    if not kl:
        raise ValueError(
            f"train.reference={path!r} has no effect with train.loss.kl={kl}: give the KL term a "
            "weight, or leave the reference out"
        )
    reference, _ = load_policy(ModelConfig(path=path), "train.reference")
    own, other = (each.get_input_embeddings().num_embeddings for each in (model, reference))
    if own != other:
        raise ValueError(
            f"train.reference={path!r} has a vocabulary of {other}, the policy one of {own}: use a "
            "reference with the same tokens"
        )
