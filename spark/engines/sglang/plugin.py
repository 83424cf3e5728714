"""The entry point of the group `sglang.srt.plugins`: SGLang calls it in every process it starts."""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Callable, Iterable
from typing import Any

from spark.engines.sglang import options
from spark.engines.sglang.hooks import Hook, check_version, install

ServerHooks = Callable[[Namespace], Iterable[Hook]]


def register(server_hooks: ServerHooks | None = None) -> None:
    """Add the `--branching` flag; where it was given, hook into this process or end it.

    `server_hooks` makes the hooks that only the launcher, where HTTP is served, needs.
    """
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType
    from sglang.srt.server_args import SAMPLING_BACKEND_CHOICES

    def on_flags(original: Callable[..., Any], kind: type, args: Namespace) -> Any:
        try:
            chosen = options.from_flags(args)
        except ValueError as error:
            raise SystemExit(f"spark: {error}") from None
        chosen.export()
        if chosen.active:
            activate(server_hooks(args) if server_hooks is not None else ())
        return original(kind, args)

    SAMPLING_BACKEND_CHOICES.add("spark")
    arguments = "sglang.srt.server_args.ServerArgs"
    HookRegistry.register(f"{arguments}.add_cli_args", options.add_flags, HookType.AFTER)
    HookRegistry.register(f"{arguments}.from_cli_args", on_flags, HookType.AROUND)
    if (engine := sys.modules.get("sglang.srt.entrypoints.engine")) is not None:
        engine.Engine.server_args_class = staticmethod(offline(engine.Engine.server_args_class))
    if options.current().active:
        activate()


def offline(kind: Callable[..., Any]) -> Callable[..., Any]:
    """Return what `sglang.Engine` makes its arguments with: `kind`, and `branching` besides.

    Without it the options are those of the environment. Raises ValueError as `from_flags` does.
    """

    def arguments(**settings: Any) -> Any:
        if "branching" in settings:
            given = Namespace(**{"sampling_backend": None, **settings})
            chosen = options.from_flags(given)
            chosen.export()
            settings = vars(given)
            if chosen.active:
                activate()
        return kind(**settings)

    return arguments


def activate(more: Iterable[Hook] = ()) -> None:
    """Install every hook; exit with a message where SGLang does not offer one."""
    check_version()
    install([*engine_hooks(), *more])


def engine_hooks() -> list[Hook]:
    """Return the hooks of the engine under the current options."""
    from spark.engines.sglang import choices, fork, penalties, rows, sampler, samples, scores

    draws = options.current().sampler == "spark"
    found = [
        *fork.HOOKS,
        choices.HOOK,
        penalties.HOOK,
        samples.HOOK,
        *rows.hooks(),
        scores.on_runner(draws),
    ]
    return found + (sampler.hooks() if draws else [])
