"""Some test images, what an attack made of them, and where the model looked."""

from __future__ import annotations

import io
from typing import Any

import numpy as np

from gambeson.app import build
from gambeson.app.report.blocks import Block, Example, Examples, Picture, Section, Words, png_uri
from gambeson.app.report.records import Records
from gambeson.app.report.words import budget, stamp
from gambeson.core.errors import InputError

Array = np.ndarray[Any, Any]

ATTACK = "pgd-50"


def examples(records: Records, count: int, data_dir: str | None, device: str) -> Section:
    """Clean image, adversarial image, difference and class-activation map, for images evenly over the test set.

    Args:
        records: The run; its checkpoint is loaded, and its data read.
        count: Images.
        data_dir: Folder with the data set's files, if it has moved.
        device: Where to attack.

    Raises:
        GambesonError: The data or the checkpoint cannot be read.
    """
    import torch

    from gambeson.data.loader import to_unit
    from gambeson.diagnosis import diagnose_cam
    from gambeson.diagnosis.probes import attacked_images

    run = records.run
    model, task, name, step = build.load_model(run, records.checkpoint, build.device(device))
    threat = build.recipe(run.call).threat
    data = build.splits(run.call, data_dir)
    build.require_fit(task, data.facts)
    rows = torch.linspace(0, len(data.test) - 1, min(count, len(data.test)), dtype=torch.float64).round().long()
    some = data.test.subset(rows)
    pixels = some.pixels
    x_adv = attacked_images(model, pixels, some.y, ATTACK, threat).cpu().float()
    x = to_unit(pixels).cpu().float()
    with torch.no_grad():
        like = next(model.parameters())
        says = [model(images.to(like.device, like.dtype)).float().softmax(1).max(1) for images in (x, x_adv)]
    clean, attacked = ([part.cpu() for part in one] for one in says)
    maps, missing = _maps(model, pixels, some.y, data.facts.class_names, diagnose_cam)
    names = data.facts.class_names
    shown: list[Example] = []
    table: list[dict[str, Any]] = []
    for place in range(len(rows)):
        true, before, after = (names[int(one)] for one in (some.y[place], clean[1][place], attacked[1][place]))
        right, still = (int(one[1][place]) == int(some.y[place]) for one in (clean, attacked))
        verdict = ("" if still else "fooled") if right else "wrong before the attack"
        pictures = _pictures(x[place].numpy(), x_adv[place].numpy(), None if maps is None else maps[place], true)
        sure = [100 * float(one[0][place]) for one in (clean, attacked)]
        words = f"True class {true}; the model says {before} ({sure[0]:.0f} %), attacked {after} ({sure[1]:.0f} %)"
        shown.append(Example(pictures, words, verdict))
        table.append({"index": int(rows[place]), "class": true, "clean": before, "attacked": after, "verdict": verdict})
    words = (
        f"Test images evenly over the set, checkpoint {name} (step {step}): the image, the image after {ATTACK}"
        f" ({budget(threat.norm, float(threat.eps))}), the difference (grey is none, stretched to the largest)"
        f"{', and the class-activation map of the prediction on the clean image' if maps is not None else ''}. In"
        " parentheses: the probability that the model gives to what it says."
    )
    blocks: list[Block] = [Words(words), Examples(shown)]
    if missing:
        blocks.append(Words(f"No maps: {missing}", "note"))
    what = {"attack": ATTACK, "norm": threat.norm, "eps": float(threat.eps), "checkpoint": name, "step": step}
    return Section("examples", "Examples", blocks, {**what, "images": table}, stamp(records.selection))


def _maps(model: Any, x: Any, y: Any, names: Any, diagnose: Any) -> tuple[Array | None, str]:
    """Class-activation maps in [0, 1] at the images' size, or why there are none."""
    try:
        found = diagnose(model, x, y, class_names=names, shown=len(y))
    except InputError as error:
        return None, error.message
    return found.shown.maps.clamp(0, 1).numpy(), ""


def _pictures(x: Array, x_adv: Array, cam: Array | None, name: str) -> list[Picture]:
    """The images of one row."""
    delta = x_adv - x
    largest = float(np.abs(delta).max())
    made = [
        _picture(x, "clean image", f"clean image of class {name}"),
        _picture(x_adv, "attacked image", f"the same image after {ATTACK}"),
        _picture(0.5 + delta / (2 * largest) if largest else delta + 0.5, "difference", "the perturbation, enlarged"),
    ]
    if cam is not None:
        from matplotlib import colormaps

        grey = np.broadcast_to(x.mean(0)[..., None], (*x.shape[1:], 3))
        colours = colormaps["inferno"](cam)[..., :3]
        made.append(
            _picture(
                (0.35 * grey + 0.65 * colours).transpose(2, 0, 1), "map", "class-activation map over the clean image"
            )
        )
    return made


def _picture(x: Array, title: str, text: str) -> Picture:
    """An image `(C, H, W)` in [0, 1] as a picture."""
    from PIL import Image

    pixels = (x.clip(0, 1) * 255).round().astype(np.uint8)
    image = Image.fromarray(pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0))
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return Picture(title, text, png_uri(buffer.getvalue()), pixelated=max(pixels.shape[1:]) < 96)
