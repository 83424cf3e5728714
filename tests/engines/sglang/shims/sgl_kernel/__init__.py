"""Stands in for SGLang's compiled kernels, which exist for CUDA only.

Names resolve, so that modules import; calling one raises. It must not define the operator
`convert_weight_packed`: its absence is what makes SGLang take the plain torch path on a CPU.
"""

__version__ = "0.0.0"
__path__ = []


def __getattr__(name):
    if name.startswith("__"):
        raise AttributeError(name)

    def missing(*_, **__):
        raise NotImplementedError(f"sgl_kernel.{name} has no CPU build")

    return missing
