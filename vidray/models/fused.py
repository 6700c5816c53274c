"""Fewer passes over memory, for networks that only score: batch norms become part of the convolution before them.

In evaluation a batch norm's statistics no longer change, so convolution and norm are one affine map. Activations then
overwrite what comes out of it.
"""

from __future__ import annotations

from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval


def fuse(model: nn.Module) -> None:
    """Change a classifier in eval mode in place: the same logits but for rounding, and no more training."""
    for module in list(model.modules()):
        _fold_batch_norms(module)
        if isinstance(module, nn.SiLU | nn.Hardswish | nn.ReLU):
            module.inplace = True


def _fold_batch_norms(module: nn.Module) -> None:
    """Make ``norm`` part of ``conv``, ``norm_a`` of ``conv_a`` and so on, where a module has both."""
    for name, conv in list(module.named_children()):
        norm_name = name.replace("conv", "norm")
        norm = getattr(module, norm_name, None)
        # X3D has a batch norm and a squeeze-excitation under one name.
        first = norm[0] if isinstance(norm, nn.Sequential) and len(norm) else norm
        if not (isinstance(conv, nn.Conv3d) and isinstance(first, nn.BatchNorm3d)):
            continue
        dtype = conv.weight.dtype
        fused = fuse_conv_bn_eval(conv.float(), first.float()).to(dtype)
        setattr(module, name, fused)
        if isinstance(norm, nn.Sequential):
            norm[0] = nn.Identity()
        else:
            setattr(module, norm_name, nn.Identity())
