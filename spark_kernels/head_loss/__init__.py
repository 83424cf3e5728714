"""`head_loss`: LM head, log-probability, entropy and a loss of them, a chunk of rows at a time."""

from spark_kernels.head_loss.op import HeadLoss, Loss, head_loss
from spark_kernels.head_loss.policy import PolicyLoss

__all__ = ["HeadLoss", "Loss", "PolicyLoss", "head_loss"]
