"""Installs hooks into SGLang and refuses to go on when one does not hold."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from importlib.metadata import version
from typing import Any, NamedTuple

SUPPORTED = ((0, 5, 19), (0, 5, 24))


class Hook(NamedTuple):
    """One place in SGLang: `kind` is before, after or around `target`."""

    target: str
    kind: str
    function: Callable[..., Any]


def installed() -> tuple[int, ...]:
    """Return the installed SGLang's version, e.g. (0, 5, 21)."""
    return tuple(int(part) for part in version("sglang").split(".")[:3])


def check_version() -> None:
    """Exit unless the installed SGLang is one that the hooks are made for."""
    low, high = SUPPORTED
    if not low <= installed() < high:
        wanted = f">={'.'.join(map(str, low))},<{'.'.join(map(str, high))}"
        raise SystemExit(f"spark: SGLang {version('sglang')} is not supported: install {wanted}")


def install(hooks: Iterable[Hook]) -> None:
    """Apply the hooks now; exit, naming the first that does not hold.

    SGLang itself only logs a hook that failed, and would serve without it.
    """
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType

    hooks = list(hooks)
    for hook in hooks:
        HookRegistry.register(hook.target, hook.function, HookType(hook.kind))
    HookRegistry.apply_hooks()
    for hook in hooks:
        if hook.target not in HookRegistry._patched:
            raise SystemExit(
                f"spark: SGLang {version('sglang')} has no {hook.target} that takes a hook: "
                "serving without it would not branch; use --branching none or another release"
            )
