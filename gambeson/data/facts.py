"""What is known of every data set: classes, size, normalisation and the settings that are customary on it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from gambeson.core.types import Task
from gambeson.data.stored import Images, StoredImages

SAMPLE = 2048
"""Stored images by which a normalisation is measured: the mean of a channel is then known to about 0.003."""
BLOCK = 256
"""Images whose levels are counted at a time."""


@dataclass(frozen=True, kw_only=True)
class Facts:
    """One line of the table of data sets.

    Attributes:
        name: Name that `load` takes.
        num_classes: Number of classes.
        class_names: Names by label, `num_classes` of them.
        channels: Image channels (1 or 3).
        size: Height and width, pixels.
        mean: Per-channel mean of the training images on the [0, 1] scale.
        std: Per-channel standard deviation on the same scale.
        eps: Customary L-infinity budget, a fraction of the pixel range.
        pad: Zero padding of the random crop, pixels; 0 for no crop.
        flip: Whether a mirrored image keeps its label, so that training may flip.
        measured_on: Training images by which mean and std were measured, where those are not all of them.
        files: Of a folder, how many images there are, and a digest of their names: splits follow from both.
    """

    name: str
    num_classes: int
    class_names: tuple[str, ...]
    channels: int
    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    eps: float
    pad: int
    flip: bool
    measured_on: int | None = None
    files: tuple[int, str] | None = None

    @property
    def task(self) -> Task:
        """The part of the facts that a model is built from.

        Examples:
            >>> FACTS["mnist"].task.size
            28
        """
        return Task(num_classes=self.num_classes, channels=self.channels, size=self.size, mean=self.mean, std=self.std)


def channel_statistics(x: Images) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of every channel, exact (from the histogram of the 256 levels).

    Args:
        x: Images, uint8, shape `(N, C, H, W)`.

    Returns:
        Means and population standard deviations on the [0, 1] scale, `C` each. A deviation is at least one grey level:
        the model divides by it, and a constant channel must not become infinite.

    Examples:
        >>> channel_statistics(torch.tensor([0, 255], dtype=torch.uint8).view(2, 1, 1, 1))
        ((0.5,), (0.5,))
    """
    levels = torch.arange(256, dtype=torch.float64) / 255
    counts = torch.zeros(x.shape[1], 256, dtype=torch.int64)
    for start in range(0, len(x), BLOCK):
        for number, channel in enumerate(x[start : start + BLOCK].unbind(1)):
            counts[number] += torch.bincount(channel.flatten(), minlength=256)
    mean, std = [], []
    for histogram in counts:
        share = histogram.double() / histogram.sum()
        centre = (share * levels).sum()
        mean.append(float(centre))
        std.append(max(float((share * (levels - centre) ** 2).sum().sqrt()), 1 / 255))
    return tuple(mean), tuple(std)


def measured_facts(name: str, class_names: Sequence[str], x: Images, *, flip: bool) -> Facts:
    """Facts of the user's own data: the normalisation is measured, the rest is cautious.

    Args:
        name: Name that `load` was given.
        class_names: Names by label.
        x: Training images, uint8, shape `(N, C, H, W)`, in a fixed order without meaning: of stored images the first
            `SAMPLE` are measured, and `measured_on` says so.
        flip: Whether a mirrored image keeps its label.

    Returns:
        Facts with eps 4/255 and the padding in CIFAR's proportion, an eighth of the size.

    Examples:
        >>> measured_facts("npz:a.npz", ["0", "1"], torch.zeros(4, 3, 32, 32, dtype=torch.uint8), flip=False).pad
        4
    """
    measured = x.subset(slice(0, SAMPLE)) if isinstance(x, StoredImages) else x
    mean, std = channel_statistics(measured)
    return Facts(
        name=name,
        num_classes=len(class_names),
        class_names=tuple(class_names),
        channels=x.shape[1],
        size=x.shape[-1],
        mean=mean,
        std=std,
        eps=4 / 255,
        pad=x.shape[-1] // 8,
        flip=flip,
        measured_on=len(measured) if len(measured) < len(x) else None,
    )


_CIFAR100_NAMES = """
apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can castle
caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin elephant flatfish
forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard lobster man maple_tree motorcycle
mountain mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree plain plate poppy porcupine
possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk skyscraper snail snake spider squirrel streetcar
sunflower sweet_pepper table tank telephone television tiger tractor train trout tulip turtle wardrobe whale
willow_tree wolf woman worm
"""

_TINY_IMAGENET_WNIDS = """
n01443537 n01629819 n01641577 n01644900 n01698640 n01742172 n01768244 n01770393 n01774384 n01774750 n01784675
n01855672 n01882714 n01910747 n01917289 n01944390 n01945685 n01950731 n01983481 n01984695 n02002724 n02056570
n02058221 n02074367 n02085620 n02094433 n02099601 n02099712 n02106662 n02113799 n02123045 n02123394 n02124075
n02125311 n02129165 n02132136 n02165456 n02190166 n02206856 n02226429 n02231487 n02233338 n02236044 n02268443
n02279972 n02281406 n02321529 n02364673 n02395406 n02403003 n02410509 n02415577 n02423022 n02437312 n02480495
n02481823 n02486410 n02504458 n02509815 n02666196 n02669723 n02699494 n02730930 n02769748 n02788148 n02791270
n02793495 n02795169 n02802426 n02808440 n02814533 n02814860 n02815834 n02823428 n02837789 n02841315 n02843684
n02883205 n02892201 n02906734 n02909870 n02917067 n02927161 n02948072 n02950826 n02963159 n02977058 n02988304
n02999410 n03014705 n03026506 n03042490 n03085013 n03089624 n03100240 n03126707 n03160309 n03179701 n03201208
n03250847 n03255030 n03355925 n03388043 n03393912 n03400231 n03404251 n03424325 n03444034 n03447447 n03544143
n03584254 n03599486 n03617480 n03637318 n03649909 n03662601 n03670208 n03706229 n03733131 n03763968 n03770439
n03796401 n03804744 n03814639 n03837869 n03838899 n03854065 n03891332 n03902125 n03930313 n03937543 n03970156
n03976657 n03977966 n03980874 n03983396 n03992509 n04008634 n04023962 n04067472 n04070727 n04074963 n04099969
n04118538 n04133789 n04146614 n04149813 n04179913 n04251144 n04254777 n04259630 n04265275 n04275548 n04285008
n04311004 n04328186 n04356056 n04366367 n04371430 n04376876 n04398044 n04399382 n04417672 n04456115 n04465501
n04486054 n04487081 n04501370 n04507155 n04532106 n04532670 n04540053 n04560804 n04562935 n04596742 n04597913
n06596364 n07579787 n07583066 n07614500 n07615774 n07695742 n07711569 n07715103 n07720875 n07734744 n07747607
n07749582 n07753592 n07768694 n07871810 n07873807 n07875152 n07920052 n09193705 n09246464 n09256479 n09332890
n09428293 n12267677
"""


def _facts(
    name: str,
    names: str,
    size: int,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    *,
    eps: float,
    pad: int,
    flip: bool,
) -> Facts:
    class_names = tuple(names.split())
    return Facts(
        name=name,
        num_classes=len(class_names),
        class_names=class_names,
        channels=len(mean),
        size=size,
        mean=mean,
        std=std,
        eps=eps,
        pad=pad,
        flip=flip,
    )


_TEN_DIGITS = "0 1 2 3 4 5 6 7 8 9"
FACTS: dict[str, Facts] = {
    facts.name: facts
    for facts in (
        # Of the 1,400 images of the training pool; a test measures them again.
        _facts("digits", _TEN_DIGITS, 8, (0.3059,), (0.3759,), eps=0.2, pad=0, flip=False),
        # No crop: the reference recipes on MNIST (Madry 2018; TRADES 2019, train_trades_mnist.py) augment nothing.
        _facts("mnist", _TEN_DIGITS, 28, (0.1307,), (0.3081,), eps=0.3, pad=0, flip=False),
        # Clothes fill the frame: two pixels, half of CIFAR's share, move them without cutting off a sleeve.
        _facts(
            "fashion-mnist",
            "t-shirt/top trouser pullover dress coat sandal shirt sneaker bag ankle_boot",
            28,
            (0.2860,),
            (0.3530,),
            eps=0.1,
            pad=2,
            flip=True,
        ),
        _facts(
            "cifar10",
            "airplane automobile bird cat deer dog frog horse ship truck",
            32,
            (0.4914, 0.4822, 0.4465),
            (0.2471, 0.2435, 0.2616),
            eps=8 / 255,
            pad=4,
            flip=True,
        ),
        _facts(
            "cifar100",
            _CIFAR100_NAMES,
            32,
            (0.5070751592371323, 0.48654887331495095, 0.4409178433670343),
            (0.2673342858792401, 0.2564384629170883, 0.27615047132568404),
            eps=8 / 255,
            pad=4,
            flip=True,
        ),
        _facts(
            "svhn",
            _TEN_DIGITS,
            32,
            (0.4377, 0.4438, 0.4728),
            (0.1980, 0.2010, 0.1970),
            eps=8 / 255,
            pad=4,
            flip=False,
        ),
        # A trap: the papers' releases normalise Tiny-ImageNet with CIFAR-100's constants. Their checkpoints need those;
        # these are the data set's own. `load` replaces the wnids by words where the data set's words.txt is at hand.
        _facts(
            "tiny-imagenet",
            _TINY_IMAGENET_WNIDS,
            64,
            (0.4802, 0.4481, 0.3975),
            (0.2770, 0.2691, 0.2821),
            eps=8 / 255,
            pad=8,
            flip=True,
        ),
    )
}
