"""PART's masks as its release builds them: one image at a time, a backward through the whole network for each.

A transcription of the procedure, written from its specification and not copied: `save_cam` of JiachengZ01/PART
(5a0ca6b) with torchcam 0.3.2's Grad-CAM, pillow's resize and matplotlib's jet. Three things differ, all in its favour:
before every backward the gradients of the weights are dropped (torch's default today) instead of set to zero and added
to, the colour map is looked up once (matplotlib copies it every time), and the network is not wrapped in
`DataParallel`. Feature maps of a transformer, which the release does not know, are its patch tokens as a square.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from matplotlib import colormaps
from PIL import Image
from torch import Tensor, nn

JET = colormaps["jet"]


def budgets(model: nn.Module, images: Tensor, layer: str, eps: float = 8 / 255, eps_low: float = 7 / 255) -> Tensor:
    """The budget of every value: `(N, 3, H, W)`, `eps` or `eps_low`."""
    model.eval()
    seen: dict[str, Tensor] = {}

    def keep(_module: nn.Module, _inputs: object, output: Tensor) -> None:
        seen["activation"] = output.data
        output.register_hook(lambda grad: seen.update(grad=grad.data))

    handle = dict(model.named_modules())[layer].register_forward_hook(keep)
    try:
        return torch.cat([_one(model, image[None], seen, eps, eps_low) for image in images])
    finally:
        handle.remove()
        model.zero_grad()


def _one(model: nn.Module, image: Tensor, seen: dict[str, Tensor], eps: float, eps_low: float) -> Tensor:
    scores = model(image)  # 1: forward, the predicted class
    chosen = scores.squeeze(0).argmax().item()
    model.zero_grad()
    scores[:, chosen].sum().backward()  # 2: through the whole network, the gradients of the weights too
    with torch.no_grad():
        activation, grad = _grid(seen["activation"]), _grid(seen["grad"])
        weights = grad.flatten(2).mean(-1)[..., None, None]
        cam = torch.nansum(weights * activation, dim=1).relu_()
        cam.sub_(cam.flatten(1).min(-1).values[:, None, None])
        cam.div_(cam.flatten(1).max(-1).values[:, None, None])  # no epsilon: NaN where the ReLU left nothing
    size = (image.shape[3], image.shape[2])
    resized = Image.fromarray(cam[0].cpu().numpy()).resize(size, Image.Resampling.BICUBIC)  # 3: float32 is mode F
    with np.errstate(invalid="ignore", divide="ignore"):
        rgb = JET(np.asarray(resized) ** 2)[:, :, :3]  # 4
        weight = np.maximum((rgb - rgb.mean()) / rgb.std(), 1)  # 5: over pixels and channels
        budget = np.where(weight > 1, eps, eps_low)  # 6; NaN is not larger than 1
    return torch.from_numpy(budget).float().permute(2, 0, 1)[None].to(image.device)


def _grid(t: Tensor) -> Tensor:
    if t.ndim == 4:
        return t
    side = math.isqrt(t.shape[1])
    return t[:, -side * side :].transpose(1, 2).unflatten(2, (side, side))
