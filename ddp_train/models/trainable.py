"""Parts of the network that are not trained (`--freeze`), and residual branches whose output is initially 0
(`--zero-init-residual`)."""

from __future__ import annotations

from types import MethodType

from torch import nn

from ddp_core.errors import UserError
from ddp_train.models.blocks import Residual
from ddp_train.models.sync_batch_norm import BATCH_NORMS
from ddp_train.optim import matching


def freeze(network: nn.Module, patterns: str) -> tuple[str, ...]:
    """Freeze the parameters whose names match; a batch norm with all parameters frozen stays in evaluation mode.

    Returns a line for the user. Errors: UserError for a pattern without a match, and where nothing is left to train.
    """
    parameters = dict(network.named_parameters())
    chosen = {name for pattern in patterns.split(",") for name in matching("--freeze", pattern, parameters)}
    for name in chosen:
        parameters[name].requires_grad_(False)
    if not any(parameter.requires_grad for parameter in parameters.values()):
        raise UserError(f"--freeze {patterns}: leaves nothing to train")
    for module in network.modules():
        own = list(module.parameters(recurse=False))
        if isinstance(module, BATCH_NORMS) and own and not any(p.requires_grad for p in own):
            module.eval()
            module.train = MethodType(lambda self, mode=True: self, module)  # type: ignore[method-assign, assignment]
    kept = sum(parameters[name].numel() for name in chosen)
    return (f"--freeze: {kept:,} of {sum(p.numel() for p in parameters.values()):,} parameters stay as they are",)


def zero_init_residual(network: nn.Module) -> None:
    """Let each residual branch that ends with batch norm output 0 at first: that norm's weight is 0 (Goyal et al. 2017,
    arXiv:1706.02677, section 5.1). Errors: UserError where the network has none."""
    norms = [norm for module in network.modules() if (norm := _last_norm(module)) is not None]
    if not norms:
        raise UserError("--zero-init-residual: this model has no residual branch that ends with batch norm")
    for norm in norms:
        nn.init.zeros_(norm.weight)


def _last_norm(module: nn.Module) -> nn.BatchNorm2d | None:
    """The batch norm that ends the branch of `module`, if that is a Residual or a block of torchvision's ResNets."""
    if isinstance(module, Residual):
        branch = list(module.branch.children())
        last = branch[-1] if branch else None
    elif type(module).__module__ == "torchvision.models.resnet":
        last = getattr(module, "bn3", None) or (getattr(module, "bn2", None))
    else:
        return None
    return last if isinstance(last, nn.BatchNorm2d) else None
