import subprocess
import sys

import pytest
import torch
from torch import nn

from gambeson.core.layout import preferred_layout
from gambeson.core.types import Task
from gambeson.models import create

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
TASK = Task(num_classes=3, channels=3, size=64, mean=(0.5,) * 3, std=(0.25,) * 3)


@pytest.mark.parametrize(
    ("width", "device", "wanted", "layout"),
    [
        (16, CPU, None, torch.channels_last),
        (64, CPU, None, torch.channels_last),
        (8, CPU, None, torch.contiguous_format),
        (24, CPU, None, torch.contiguous_format),  # no multiple of 16: not tried, so not trusted
        (16, CUDA, None, torch.contiguous_format),
        (16, CPU, False, torch.contiguous_format),
        (8, CUDA, True, torch.channels_last),
    ],
)
def test_channels_last_where_it_is_faster_and_safe(width, device, wanted, layout):
    assert preferred_layout(create("resnet18", TASK, width=width, seed=0), device, wanted) == layout


def test_a_model_without_strided_projections_is_safe():
    assert preferred_layout(nn.Sequential(nn.Conv2d(3, 5, 3, stride=2), nn.Conv2d(5, 5, 1)), CPU) == torch.channels_last


def test_a_narrow_network_on_large_images_trains_without_a_crash():
    """In a process of its own: what is avoided is a segmentation fault inside torch."""
    code = """
import torch
from gambeson.core.layout import preferred_layout
from gambeson.core.types import Task
from gambeson.models import create
task = Task(num_classes=3, channels=3, size=64, mean=(0.5,) * 3, std=(0.25,) * 3)
model = create("preact-resnet18", task, width=8, seed=0)
layout = preferred_layout(model, torch.device("cpu"))
model.to(memory_format=layout)
x = torch.rand(8, 3, 64, 64).contiguous(memory_format=layout).requires_grad_()
model(x).sum().backward()
print("done")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr
