"""Class-activation maps of a whole batch in one pass, without a backward where the model allows it."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple, get_args

import torch

from gambeson.core.errors import GambesonWarning, InputError, nearest, require_known
from gambeson.core.modes import batch_norm, frozen

if TYPE_CHECKING:
    from torch import Tensor, nn

CamMethod = Literal["gradcam", "xgradcam", "layercam"]


@dataclass(frozen=True)
class CAM:
    """A class-activation map: where in the image the evidence for a class lies.

    With `A` the feature maps of a layer, `(N, K, h, w)`, and `G = d z_c / d A` for the class c of every image:

    | method | map |
    |---|---|
    | gradcam | `relu(sum_k mean_ij(G_k) A_k)` |
    | xgradcam | `relu(sum_k (sum_ij G_k A_k / sum_ij A_k) A_k)` |
    | layercam | `relu(sum_k relu(G_k) A_k)` |

    Args:
        method: One of the three.
        layer: Name of the module whose output is A; None finds the last spatial feature map, see `find_site`.

    References:
        Selvaraju et al., "Grad-CAM", ICCV 2017, https://arxiv.org/abs/1610.02391; Fu et al., "Axiom-based Grad-CAM",
        BMVC 2020, https://arxiv.org/abs/2008.02312; Jiang et al., "LayerCAM", IEEE TIP 2021,
        https://doi.org/10.1109/TIP.2021.3089943
    """

    method: CamMethod = "gradcam"
    layer: str | None = None

    def __post_init__(self) -> None:
        require_known("class-activation map", self.method, get_args(CamMethod))


class Head(NamedTuple):
    """What follows the layer, where it is average pooling and a linear layer: then G needs no backward.

    Attributes:
        linear: Name of the linear layer that gives the logits.
        norm: Name of a BatchNorm, followed by a ReLU, between the layer and the pooling; or None.
        cells: The pooling leaves `cells x cells` averages.
    """

    linear: str
    norm: str | None
    cells: int


class Site(NamedTuple):
    """Where the maps of a model are read.

    Attributes:
        layer: Name of the module.
        head: The closed form of what follows, or None: then a backward goes through what follows, and no further.
    """

    layer: str
    head: Head | None


class Maps(NamedTuple):
    """Class-activation maps of a batch.

    Attributes:
        maps: `(N, h, w)`, not negative, not scaled.
        logits: `(N, num_classes)`.
        classes: The class of every map, `(N,)`.
    """

    maps: Tensor
    logits: Tensor
    classes: Tensor


def class_activation_maps(
    model: nn.Module, x: Tensor, site: Site, method: CamMethod = "gradcam", classes: Tensor | None = None
) -> Maps:
    """The maps of a batch, in evaluation mode. One forward where the head has a closed form.

    In evaluation mode an image's logits depend on that image alone, so one backward of the sum over the batch gives
    every image its own gradient. It starts at the logits and ends at the layer.

    Args:
        model: Maps images to logits; comes back as it was.
        x: Images `(N, C, H, W)`.
        site: From `find_site`.
        method: See `CAM`.
        classes: Class of every image, int64 `(N,)`; None takes the predicted one.
    """
    modules = dict(model.named_modules())
    with batch_norm(model, "running"), frozen(model):
        if site.head is not None:
            names = [site.layer, *([site.head.norm] if site.head.norm else [])]
            with torch.no_grad(), _outputs({name: modules[name] for name in names}) as seen:
                logits = model(x)
            chosen = logits.argmax(1) if classes is None else classes
            features = seen[site.layer]
            grad = _closed_form(modules, site.head, features, seen, chosen)
        else:
            with torch.enable_grad(), _leaf(modules[site.layer]) as leaves:
                logits = model(x)
                chosen = logits.detach().argmax(1) if classes is None else classes
                (grad,) = torch.autograd.grad(logits.gather(1, chosen[:, None]).sum(), leaves[-1])
            features, grad, logits = _grid(leaves[-1].detach(), x), _grid(grad, x), logits.detach()
    return Maps(_combine(method, features, grad), logits, chosen)


def normalised(maps: Tensor) -> tuple[Tensor, Tensor]:
    """Every map scaled to [0, 1], and which are dead.

    A map without differences (all zero, mostly: the ReLU left nothing) or with NaN is dead and comes back as zeros.

    Args:
        maps: `(N, h, w)`.

    Returns:
        Maps `(N, h, w)` whose smallest value is 0 and whose largest is 1, and bool `(N,)`.
    """
    low, high = maps.amin((1, 2), keepdim=True), maps.amax((1, 2), keepdim=True)
    alive = (high > low) & high.isfinite() & low.isfinite()
    scaled = (maps - low) / (high - low)
    return torch.where(alive, scaled, torch.zeros_like(scaled)), ~alive.flatten()


def find_site(model: nn.Module, x: Tensor, layer: str | None = None) -> Site:
    """Where the maps of `model` are read, found by running it on a few images.

    Without `layer`: in a transformer the last LayerNorm whose patch tokens the logits still depend on (the class token
    alone is read after that); else the output of the last stage with convolutions that has more than one position:
    `layer4` of ResNets, `block3` of WideResNets, before a final BatchNorm, as in PART's release.

    Feature maps are `(N, K, h, w)` or tokens `(N, T, K)`, the patches last and in the proportions of the images; other
    orders, such as `(N, h, w, K)`, are not told apart. Where the network ends in a feature map of 1x1, as VGG does, the
    layer is a convolution before its BatchNorm and ReLU: naming the module after the ReLU gives better maps.

    The closed form is not assumed but checked on `x`: the linear layer's input must be the pooled features.

    Args:
        model: Maps images to logits.
        x: One image or more.
        layer: Name of a module, as in `model.named_modules()`.

    Raises:
        InputError: No such module, or one without a spatial output (its candidates are listed); or nothing spatial in
            the whole model.

    Warns:
        GambesonWarning: The head has no closed form, so that every map costs a backward through it.
    """
    with batch_norm(model, "running"), frozen(model):
        trace = _trace(model, x)
        if layer is None:
            layer = _last_tokens(trace, x) or _last_stage(trace)
            if layer is None:
                raise InputError("the model has no spatial feature map to make class-activation maps of")
        elif layer not in trace.modules or not layer:
            raise InputError(
                f"the model has no layer {layer!r}",
                hint=nearest(layer, [n for n in trace.spatial() if n.count(".") < 2]),
            )
        elif layer not in trace.spatial():
            shape = tuple(trace.outputs[layer].shape) if layer in trace.outputs else "nothing in this forward"
            raise InputError(
                f"the layer {layer!r} has no spatial extent: it returns {shape}",
                hint=f"layers with one: {', '.join(n for n in trace.spatial() if n.count('.') < 2)}",
            )
        head = _find_head(trace, layer)
    if head is None:
        warnings.warn(
            f"class-activation maps of {layer!r}: what follows it is not average pooling and a linear layer;"
            " every refresh makes a backward through it",
            GambesonWarning,
            stacklevel=2,
        )
    return Site(layer, head)


def _combine(method: CamMethod, features: Tensor, grad: Tensor) -> Tensor:
    if method == "layercam":
        return (grad.relu() * features).sum(1).relu()
    if method == "gradcam":
        weights = grad.mean((2, 3))
    else:
        total = features.sum((2, 3))
        weights = torch.where(total == 0, torch.zeros_like(total), (grad * features).sum((2, 3)) / total)
    return torch.einsum("nk,nkhw->nhw", weights, features).relu()


def _closed_form(
    modules: Mapping[str, nn.Module], head: Head, features: Tensor, seen: Mapping[str, Tensor], classes: Tensor
) -> Tensor:
    """`d z_c / d A` of pooling and a linear layer, perhaps with BatchNorm and ReLU before them."""
    linear = modules[head.linear]
    assert isinstance(linear, torch.nn.Linear)
    (n, k), (h, w) = features.shape[:2], features.shape[2:]
    area = (h // head.cells) * (w // head.cells)
    grad = linear.weight.detach()[classes].view(n, k, head.cells, head.cells) / area
    if head.cells == 1:
        grad = grad.expand(n, k, h, w)
    else:
        grad = grad.repeat_interleave(h // head.cells, 2).repeat_interleave(w // head.cells, 3)
    if head.norm is not None:
        norm = modules[head.norm]
        assert isinstance(norm, torch.nn.BatchNorm2d)
        assert norm.running_var is not None
        scale = (norm.running_var + norm.eps).rsqrt()
        scale = scale if norm.weight is None else scale * norm.weight.detach()
        grad = grad * scale.view(1, k, 1, 1) * (seen[head.norm] > 0)
    return grad


def _grid(t: Tensor, x: Tensor) -> Tensor:
    """Features `(N, K, h, w)`; tokens `(N, T, K)` lose those before the patches and become a grid.

    It is the largest grid of the proportions of the images `x`: square for square images.
    """
    if t.ndim == 4:
        return t
    height, width = x.shape[2:]
    shared = math.gcd(height, width)
    rows, columns = height // shared, width // shared
    scale = math.isqrt(t.shape[1] // (rows * columns))
    if scale == 0:
        raise InputError(f"{t.shape[1]} tokens make no grid of the proportions of {height}x{width} images")
    rows, columns = scale * rows, scale * columns
    return t[:, t.shape[1] - rows * columns :].transpose(1, 2).unflatten(2, (rows, columns))


@contextmanager
def _outputs(modules: Mapping[str, nn.Module]) -> Iterator[dict[str, Tensor]]:
    """The outputs of modules during the block, by name, in the order in which they finished (last call each)."""
    seen: dict[str, Tensor] = {}

    def keep(name: str, output: object) -> None:
        if isinstance(output, torch.Tensor):
            seen.pop(name, None)
            seen[name] = output

    handles = [
        module.register_forward_hook(lambda _m, _i, output, name=name: keep(name, output))
        for name, module in modules.items()
    ]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _leaf(module: nn.Module) -> Iterator[list[Tensor]]:
    """Cut the graph at a module's output: the backward ends there, and what lies before keeps nothing for it."""
    leaves: list[Tensor] = []

    def cut(_module: nn.Module, _inputs: object, output: Tensor) -> Tensor:
        leaves.append(output.detach().requires_grad_())
        return leaves[-1].clone()  # a copy, since the next module may work in place

    handle = module.register_forward_hook(cut)
    try:
        yield leaves
    finally:
        handle.remove()


class _Trace(NamedTuple):
    """One forward: the modules, what they returned in the order of their ends, and the inputs of the linear layers.

    `overwritten` names the modules whose output was changed in place after they returned it.
    """

    modules: dict[str, nn.Module]
    outputs: dict[str, Tensor]
    inputs: dict[str, Tensor]
    logits: Tensor
    overwritten: set[str]

    def spatial(self) -> list[str]:
        """Names of the modules with a spatial output."""
        return [name for name, t in self.outputs.items() if name and (_is_map(t) or _is_tokens(t))]


def _trace(model: nn.Module, x: Tensor) -> _Trace:
    modules = dict(model.named_modules())
    inputs: dict[str, Tensor] = {}
    versions: dict[str, int] = {}

    def keep(name: str, given: tuple[object, ...]) -> None:
        if given and isinstance(given[0], torch.Tensor):
            inputs[name] = given[0]

    def note(name: str, output: object) -> None:
        if isinstance(output, torch.Tensor):
            versions[name] = output._version

    kinds = (torch.nn.Linear, torch.nn.BatchNorm2d)
    handles = [
        module.register_forward_pre_hook(lambda _m, given, name=name: keep(name, given))
        for name, module in modules.items()
        if isinstance(module, kinds)
    ]
    handles += [
        module.register_forward_hook(lambda _m, _i, output, name=name: note(name, output))
        for name, module in modules.items()
    ]
    try:
        # with a graph, so that it can be asked what the logits depend on
        with torch.enable_grad(), _outputs(modules) as outputs:
            logits = model(x.detach().requires_grad_())
    finally:
        for handle in handles:
            handle.remove()
    overwritten = {name for name, t in outputs.items() if t._version != versions[name]}
    return _Trace(modules, outputs, inputs, logits, overwritten)


def _is_map(t: Tensor) -> bool:
    return t.ndim == 4 and t.shape[2] * t.shape[3] > 1


def _is_tokens(t: Tensor) -> bool:
    return t.ndim == 3 and t.shape[1] >= 4


def _last_stage(trace: _Trace) -> str | None:
    found = None
    for name, t in trace.outputs.items():
        if name and _is_map(t) and any(isinstance(m, torch.nn.Conv2d) for m in trace.modules[name].modules()):
            found = name
    return found


def _last_tokens(trace: _Trace, x: Tensor) -> str | None:
    names = [n for n, t in trace.outputs.items() if _is_tokens(t) and isinstance(trace.modules[n], torch.nn.LayerNorm)]
    if not names:
        return None
    tokens = [trace.outputs[name] for name in names]
    linear = _last_linear(trace)  # what it reads, since it may still have zero weights
    read = (trace.logits if linear is None else trace.inputs[linear]).flatten(1)
    weights = torch.linspace(
        1, 2, read.shape[1], dtype=read.dtype, device=read.device
    )  # a norm's plain sum is constant
    grads = torch.autograd.grad((read * weights).sum(), tokens, allow_unused=True)
    for name, grad in zip(reversed(names), reversed(grads), strict=True):
        if grad is not None and bool(_grid(grad, x).any()):
            return name
    return None


def _last_linear(trace: _Trace) -> str | None:
    """Name of the linear layer that gives the logits."""
    names = [n for n, m in trace.modules.items() if isinstance(m, torch.nn.Linear) and n in trace.outputs]
    return next((n for n in names if trace.outputs[n] is trace.logits), None)


def _find_head(trace: _Trace, layer: str) -> Head | None:
    features, linear = trace.outputs[layer].detach(), _last_linear(trace)
    if features.ndim != 4 or layer in trace.overwritten or linear is None or trace.inputs[linear].ndim != 2:
        return None
    last, pooled = trace.modules[linear], trace.inputs[linear].detach()
    assert isinstance(last, torch.nn.Linear)
    if not pooled.any() or not _close(torch.nn.functional.linear(pooled, last.weight, last.bias), trace.logits):
        return None  # a linear layer that does more, or features that would agree with any pooling
    candidates: list[tuple[str | None, Tensor]] = [(None, features)]
    for name, given in trace.inputs.items():
        norm = trace.modules[name]
        if isinstance(norm, torch.nn.BatchNorm2d) and norm.running_var is not None and given is trace.outputs[layer]:
            candidates.append((name, trace.outputs[name].detach().relu()))
    cells = math.isqrt(max(1, pooled.shape[1] // features.shape[1]))
    if pooled.shape[1] != features.shape[1] * cells * cells or features.shape[2] % cells or features.shape[3] % cells:
        return None
    for between, active in candidates:
        averages = torch.nn.functional.adaptive_avg_pool2d(active, cells).flatten(1)
        if _close(averages, pooled):
            return Head(linear, between, cells)
    return None


def _close(a: Tensor, b: Tensor) -> bool:
    return torch.allclose(a, b.detach(), rtol=1e-4, atol=1e-5 * float(b.detach().abs().max()))
