"""What all tests share: one thread per worker, reproducible hypothesis, and small models and data made on demand."""

import copy
from collections.abc import Callable
from pathlib import Path

import hypothesis
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from gambeson.core.types import Batch, Task
from gambeson.data.splits import Examples

hypothesis.settings.register_profile("gambeson", deadline=None, max_examples=25, derandomize=True, database=None)
hypothesis.settings.load_profile("gambeson")
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny_task() -> Task:
    """Three classes of 8x8 grey images."""
    return Task(num_classes=3, channels=1, size=8, mean=(0.5,), std=(0.25,))


@pytest.fixture(scope="session")
def tiny_net() -> Callable[..., nn.Sequential]:
    """Builds a convolution with BatchNorm and a linear layer for `tiny_task`, from a seed."""

    def build(seed: int = 0) -> nn.Sequential:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return nn.Sequential(
                nn.Conv2d(1, 4, 3, padding=1, bias=False),
                nn.BatchNorm2d(4),
                nn.Softplus(),
                nn.Flatten(),
                nn.Linear(256, 3),
            )

    return build


@pytest.fixture(scope="session")
def tiny_batch() -> Callable[..., Batch]:
    """Builds `n` random images of `tiny_task`, from a seed."""

    def build(n: int = 6, seed: int = 0) -> Batch:
        rng = torch.Generator().manual_seed(seed)
        x = torch.rand((n, 1, 8, 8), generator=rng)
        return Batch(x, torch.randint(0, 3, (n,), generator=rng), torch.arange(n))

    return build


@pytest.fixture(scope="session")
def tiny_examples() -> Callable[..., Examples]:
    """Builds a learnable set for `tiny_task`: the class is the bright third of the image."""

    def build(n: int = 24, seed: int = 0) -> Examples:
        rng = torch.Generator().manual_seed(seed)
        y = torch.arange(n) % 3
        x = torch.randint(0, 100, (n, 1, 8, 8), generator=rng)
        for i in range(n):
            x[i, :, :, 3 * int(y[i]) : 3 * int(y[i]) + 2] += 150
        return Examples(x.to(torch.uint8), y)

    return build


@pytest.fixture(scope="session")
def write_photos() -> Callable[..., Path]:
    """Writes `count` noisy images of three classes in turn, each a file of its own shape, into a folder."""

    def write(path: Path, count: int = 30, seed: int = 0) -> Path:
        draw = np.random.default_rng(seed)
        for i in range(count):
            shape = (int(draw.integers(9, 14)), int(draw.integers(9, 14)), 3)
            file = path / "abc"[i % 3] / (f"{i:03d}.jpg" if i % 2 else f"{i:03d}.png")
            file.parent.mkdir(parents=True, exist_ok=True)
            pixels = draw.integers(0, 100, shape, dtype=np.uint8)
            pixels[..., i % 3] += 150
            Image.fromarray(pixels).save(file)
        return path

    return write


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory, write_photos: Callable[..., Path]) -> Path:
    """Such a folder; look, do not touch."""
    return write_photos(tmp_path_factory.mktemp("photos"))


@pytest.fixture(scope="session")
def generator() -> Callable[[int], torch.Generator]:
    """Builds a CPU generator from a seed."""
    return lambda seed: torch.Generator().manual_seed(seed)


@pytest.fixture(scope="session")
def snapshot() -> Callable[[nn.Module], dict[str, Tensor]]:
    """Copies the parameters and buffers of a module."""
    return lambda module: {name: t.detach().clone() for name, t in module.state_dict().items()}


@pytest.fixture(scope="session")
def curved_net() -> Callable[..., nn.Sequential]:
    """Builds a model for 2x8x8 images from a seed, in evaluation mode; the nearest class is not always the easiest."""

    def build(seed: int = 2, classes: int = 6) -> nn.Sequential:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            net = nn.Sequential(
                nn.Conv2d(2, 6, 3, padding=1, bias=False),
                nn.BatchNorm2d(6),
                nn.Tanh(),
                nn.Flatten(),
                nn.Linear(384, classes),
            )
            net = net.double().eval()
            with torch.no_grad():
                net[0].weight *= 2
                net[4].weight *= torch.logspace(-1, 0.5, classes)[:, None]  # classes rise at different speeds
                net[4].bias -= net(torch.rand(200, 2, 8, 8, dtype=torch.float64)).mean(0)  # all classes occur
        return net

    return build


@pytest.fixture(scope="session")
def labelled() -> Callable[..., Batch]:
    """Builds `n` random images with the labels that a model gives in evaluation mode, the first `wrong` of them not."""

    def build(net: nn.Module, n: int = 12, seed: int = 1, wrong: int = 0) -> Batch:
        rng = torch.Generator().manual_seed(seed)
        x = torch.rand((n, 2, 8, 8), generator=rng, dtype=torch.float64)
        with torch.no_grad():
            logits = copy.deepcopy(net).eval()(x)
        y = logits.argmax(1)
        y[:wrong] = (y[:wrong] + 1) % logits.shape[1]
        return Batch(x, y, torch.arange(n))

    return build
