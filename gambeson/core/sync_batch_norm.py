"""BatchNorm over the images of all processes that share a step."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from gambeson.core.processes import rank_and_world, total


def share_batch_norms(model: nn.Module, device: torch.device) -> nn.Module:
    """The model with its BatchNorms over the images of all processes in training mode; its state dict stays the same.

    On CUDA these are torch's `SyncBatchNorm`, which has no kernel for the CPU; there, `SharedBatchNorm`. Without a
    process group the model is left as it is.
    """
    if rank_and_world()[1] == 1:
        return model
    if device.type == "cuda":
        converted: nn.Module = nn.SyncBatchNorm.convert_sync_batchnorm(model)
        return converted
    for name, module in list(model.named_modules()):
        if isinstance(module, _BatchNorm) and not isinstance(module, SharedBatchNorm):
            model.set_submodule(name, SharedBatchNorm.of(module))
    return model


class _Total(torch.autograd.Function):
    """The sum over the processes; the gradient of every process's part is the sum of all their gradients."""

    @staticmethod
    def forward(ctx: Any, part: Tensor) -> Tensor:
        return total(part)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return _summed(grad)


def _summed(part: Tensor) -> Tensor:
    found: Tensor = _Total.apply(part)
    return found


class SharedBatchNorm(_BatchNorm):
    """BatchNorm with mean and variance over the images of all processes, of any number of images each.

    In training mode, for n values of a channel in all processes: `m = sum x / n`, `v = sum (x - m)^2 / n`, in two
    exchanges through which gradients flow back. In evaluation mode it is BatchNorm.
    """

    @classmethod
    def of(cls, norm: _BatchNorm) -> SharedBatchNorm:
        """With the settings, parameters and buffers of another BatchNorm; the same tensors."""
        made = cls(norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats, device="meta")
        for name, p in norm.named_parameters(recurse=False):
            setattr(made, name, p)
        for name, buffer in norm.named_buffers(recurse=False):
            made.register_buffer(name, buffer)
        return made.train(norm.training)

    def _check_input_dim(self, input: Tensor) -> None:
        if input.ndim < 2:
            raise ValueError(f"BatchNorm takes (N, C, ...), got {tuple(input.shape)}")

    def forward(self, input: Tensor) -> Tensor:
        """The normalised input, of its shape."""
        if not self.training:
            return super().forward(input)
        dims, shape = [0, *range(2, input.ndim)], (1, -1, *[1] * (input.ndim - 2))
        here = input.new_full((1,), input.numel() // input.shape[1])
        sums = _summed(torch.cat([input.sum(dims), here]))
        n = sums[-1].detach()
        mean = sums[:-1] / n
        away = input - mean.view(shape)
        var = _summed(away.square().sum(dims)) / n
        self._follow(mean.detach(), var.detach() * n / (n - 1))
        y = away * (var + self.eps).rsqrt().view(shape)
        return y * self.weight.view(shape) + self.bias.view(shape) if self.affine else y

    def _follow(self, mean: Tensor, var: Tensor) -> None:
        if not self.track_running_stats or self.running_mean is None or self.running_var is None:
            return
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        step = 1 / self.num_batches_tracked.to(mean.dtype) if self.momentum is None else self.momentum
        for running, value in ((self.running_mean, mean), (self.running_var, var)):
            # .data: as in modes.replay_statistics, a graph may keep the buffer without using it
            running.data.copy_(torch.lerp(running, value, torch.as_tensor(step, dtype=mean.dtype)))
