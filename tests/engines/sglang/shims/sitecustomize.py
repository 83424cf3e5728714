"""Lets stock SGLang run on a CPU: what it would find compiled for CUDA is filled in after import.

Loaded by every process that has this folder on PYTHONPATH, SGLang's children included.
"""

import importlib.abc
import importlib.util
import sys


class AfterImport(importlib.abc.MetaPathFinder):
    """Calls a function once a module was imported."""

    def __init__(self, actions):
        self.actions = actions

    def find_spec(self, name, path=None, target=None):
        action = self.actions.pop(name, None)
        if action is None:
            return None
        spec = importlib.util.find_spec(name)
        if spec is not None:
            run = spec.loader.exec_module

            def exec_module(module):
                run(module)
                action(module)

            spec.loader.exec_module = exec_module
        return spec


def skip_torchvision_fakes(library):
    """A CUDA-built torchvision's operators do not load: fakes have nothing to attach to."""
    original = library.register_fake

    def register_fake(op, *args, **kwargs):
        if isinstance(op, str) and op.startswith("torchvision::"):
            return lambda function: function
        return original(op, *args, **kwargs)

    library.register_fake = register_fake


class Launch:
    """A function that is called like a Triton kernel."""

    def __init__(self, function):
        self.function = function

    def __getitem__(self, grid):
        return self.function


def page_allocator_in_torch(kernels):
    """Before 0.5.22 the page allocator has Triton kernels only."""
    import torch

    def extend(prefix_lens, seq_lens, last_loc, free_pages, out, _, page_size):
        from sglang.srt.mem_cache.allocator.paged import alloc_extend_naive

        alloc_extend_naive(prefix_lens, seq_lens, last_loc, free_pages, out, page_size, out.device)

    def decode(seq_lens, last_loc, free_pages, out, _, page_size):
        new = (seq_lens - 1) % page_size == 0
        pages = free_pages[(new.cumsum(0) - 1).clamp(min=0)] if len(free_pages) else last_loc
        out.copy_(torch.where(new, pages * page_size, last_loc + 1))

    kernels.alloc_extend_kernel = Launch(extend)
    kernels.alloc_decode_kernel = Launch(decode)


sys.meta_path.insert(
    0,
    AfterImport(
        {
            "torch.library": skip_torchvision_fakes,
            "sglang.kernels.ops.memory.allocator": page_allocator_in_torch,
        }
    ),
)
