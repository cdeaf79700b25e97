"""Options of the commands. With the method's signature and `Settings` they are the schema of command line and YAML."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class TrainOptions:
    """What to train on, and where the result goes.

    Args:
        data: digits, mnist, fashion-mnist, cifar10, cifar100, svhn, tiny-imagenet, folder:PATH or npz:PATH.
        data_dir: Folder with the data set's files; else $GAMBESON_DATA, else a cache to which they are downloaded.
        verify: Check the files that are already there against the published checksums.
        val_fraction: Share of the training set held out for validation and selection, stratified; 0 selects nothing.
        train_size: Train on that many images only, stratified.
        size: Side to which a folder's images are resized, pixels; default their own, at most 64.
        stream: on decodes a folder's images when a batch needs them, off all at once; auto: on above a quarter of the
            memory.
        workers: Processes that decode a streamed folder; default one less than there are cores, at most 8.
        model: Network, see `gambeson list models`.
        width: Channels of the network's first stage; fewer for work on a CPU.
        ema: Decay of a moving average of the weights, which is then validated and saved; such as 0.995.
        device: auto, cpu, cuda, cuda:N or mps.
        threads: Threads on the CPU; default torch's choice. A tiny network is faster with one.
        run: Run directory to create; default runs/DATA-METHOD-N.
        attack: Attacks of the final table on the test set, comma-separated.
        test_size: Attack at most that many test images in the final table.
        tensorboard: Write the metrics for TensorBoard too.
        report: Write the page RUN/report.html at the end.
    """

    data: str = "digits"
    data_dir: str | None = None
    verify: bool = False
    val_fraction: float = 0.05
    train_size: int | None = None
    size: int | None = None
    stream: Literal["auto", "on", "off"] = "auto"
    workers: int | None = None
    model: str = "preact-resnet18"
    width: int | None = None
    ema: float | None = None
    device: str = "auto"
    threads: int | None = None
    run: str | None = None
    attack: str = "clean,fgsm,pgd-50"
    test_size: int | None = None
    tensorboard: bool = False
    report: bool = True


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions:
    """What to measure.

    Args:
        attack: Attacks, comma-separated, such as clean,pgd-50-10,autoattack; see `gambeson list attacks`.
        checkpoint: best (by validation), final, last, or snapshot-STEP.
        eps: Budget; default the run's.
        norm: Linf or L2; default the run's.
        split: test or val.
        test_size: At most that many images.
        data: Another data set with the same classes.
        data_dir: Folder with the data set's files.
        batch_size: Images at a time.
        seed: Seed of the random starts.
        search_dtype: bf16 or fp16: AutoAttack searches in it, and every fall is confirmed in float32.
        fold: AutoAttack searches on a copy whose BatchNorms are folded, and every fall is confirmed by the model.
        device: auto, cpu, cuda, cuda:N or mps.
        per_class: Print accuracies by class.
        json: Print JSON instead of tables; an error too, as an object with error and hint.
    """

    attack: str = "clean,fgsm,pgd-50-10"
    checkpoint: str = "best"
    eps: float | None = None
    norm: str | None = None
    split: str = "test"
    test_size: int | None = None
    data: str | None = None
    data_dir: str | None = None
    batch_size: int = 256
    seed: int = 0
    search_dtype: str | None = None
    fold: bool = True
    device: str = "auto"
    per_class: bool = False
    json: bool = False


@dataclass(frozen=True, kw_only=True)
class ImportOptions:
    """What a foreign checkpoint is of, and where the run goes.

    Args:
        model: Network, see `gambeson list models`.
        data: Data set that it was trained on: cifar10, tiny-imagenet, ..., folder:PATH or npz:PATH.
        eps: Budget that it was trained for, as 8/255 or 0.03; default the data set's.
        norm: Linf or L2.
        width: Channels of the network's first stage; default the papers'.
        key: Where in the file the state dict is, such as net or last.model.
        mean: Means of the channels that it normalises with, on the scale of [0, 1]; default the data set's.
        std: Standard deviations, likewise.
        run: Run directory to create; default runs/DATA-external-N.
        data_dir: Folder with the data set's files.
        val_fraction: Share of the training set held out, for commands that look at the val split.
        size: Side to which a folder's images are resized, pixels.
    """

    model: str
    data: str
    eps: float | None = None
    norm: Literal["Linf", "L2"] = "Linf"
    width: int | None = None
    key: str | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    run: str | None = None
    data_dir: str | None = None
    val_fraction: float = 0.05
    size: int | None = None


@dataclass(frozen=True, kw_only=True)
class DoctorOptions:
    """What to examine, and for which attacks.

    Args:
        checkpoint: best (by validation), final, last, or snapshot-STEP; of a run.
        eps: Budget of the attacks to come, as 8/255 or 0.03; default the run's, or the data set's.
        norm: Linf or L2; default the run's, or Linf.
        split: test or val.
        images: Images on which the model is run, evenly over the split.
        model: Network of a checkpoint file, see `gambeson list models`.
        data: Data set of a checkpoint file, or another one with the same classes for a run.
        width: Channels of the network's first stage; default the papers'. For a file.
        key: Where in the file the state dict is, such as net or last.model.
        mean: Means of the channels that it normalises with, on the scale of [0, 1]; default the data set's. For a file.
        std: Standard deviations, likewise.
        size: Side to which a folder's images are resized, pixels.
        data_dir: Folder with the data set's files.
        device: auto, cpu, cuda, cuda:N or mps.
        json: Print JSON instead of a table; an error too, as an object with error and hint.
    """

    checkpoint: str = "best"
    eps: float | None = None
    norm: str | None = None
    split: str = "test"
    images: int = 64
    model: str | None = None
    data: str | None = None
    width: int | None = None
    key: str | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    size: int | None = None
    data_dir: str | None = None
    device: str = "auto"
    json: bool = False


@dataclass(frozen=True, kw_only=True)
class ResumeOptions:
    """How to go on with a run. What it trains is in the run.

    Args:
        data_dir: Folder with the data set's files, if it has moved.
        device: auto, cpu, cuda, cuda:N or mps.
    """

    data_dir: str | None = None
    device: str = "auto"


@dataclass(frozen=True, kw_only=True)
class RunsOptions:
    """How to show runs.

    Args:
        root: Folder that holds the runs, for list.
        plot: Picture of the training curves to write (.svg, .png), for compare.
        json: Print JSON instead of tables; an error too, as an object with error and hint.
    """

    root: str = "runs"
    plot: str | None = None
    json: bool = False


@dataclass(frozen=True, kw_only=True)
class CamOptions:
    """Which maps of a run to look at.

    Args:
        checkpoint: best (by validation), final, last, or snapshot-STEP.
        split: test or val.
        images: Images in the picture, evenly over those measured.
        test_size: Measure at most that many images.
        cam: gradcam, xgradcam or layercam; default the run's, else gradcam.
        layer: Module whose output the maps are made of; default the run's, else the last spatial feature map.
        mask: Which pixels have the full budget: zscore[:T], quantile[:Q] or jet; default the run's, else zscore.
        data_dir: Folder with the data set's files, if it has moved.
        device: auto, cpu, cuda, cuda:N or mps.
        batch_size: Images at a time.
        out: Picture to write (.png, .svg, .pdf), the numbers beside it as .json; default RUN/diagnosis/cam.png.
        json: Print JSON instead of a table; an error too, as an object with error and hint.
    """

    checkpoint: str = "best"
    split: str = "test"
    images: int = 8
    test_size: int | None = None
    cam: str | None = None
    layer: str | None = None
    mask: str | None = None
    data_dir: str | None = None
    device: str = "auto"
    batch_size: int = 256
    out: str | None = None
    json: bool = False


@dataclass(frozen=True, kw_only=True)
class RegionsOptions:
    """Budgets, seeds and place of the regional experiment.

    Args:
        eps: Budget of three quarters of the image; default 1.5 times the data set's (digits 0.3, CIFAR 12/255).
        eps_low: Budget of the other quarter; default 0.75 times the data set's (digits 0.15, CIFAR 6/255).
        eval_eps: Budget of the attacks on the test set; default the data set's (digits 0.2, CIFAR 8/255).
        steps: Attack steps of the training.
        rel_step_size: Step as a multiple of eps, the same on all pixels and in all setups.
        seeds: Seeds, comma-separated; every one trains all five setups.
        root: Folder for the runs, the table and the picture. The same command goes on where it stopped.
        out: Picture to write (.png, .svg, .pdf); default ROOT/regions.png.
        json: Print JSON instead of tables; an error too, as an object with error and hint.
    """

    eps: float | None = None
    eps_low: float | None = None
    eval_eps: float | None = None
    steps: int = 10
    rel_step_size: float = 0.25
    seeds: str = "0,1,2"
    root: str = "runs/regions"
    out: str | None = None
    json: bool = False


@dataclass(frozen=True, kw_only=True)
class CorruptionOptions:
    """Which corruptions of the test set to measure a run on.

    Args:
        set: standard15 (the benchmark's), rift18 (RiFT's release: the others too, no glass blur) or all19.
        corruptions: Some by name, comma-separated, instead of a set; see `gambeson list corruptions`.
        severities: Severities, comma-separated, each 1 to 5.
        published: Read CIFAR-10-C, CIFAR-100-C or Tiny-ImageNet-C from the data folder instead of generating images.
        frost_textures: Folder with the published photographs of frost; without it textures are generated.
        test_size: At most that many test images.
        checkpoint: best (by validation), final, last, or snapshot-STEP.
        seed: Seed of the generated corruptions.
        batch_size: Images at a time.
        data_dir: Folder with the data set's files, if it has moved.
        device: auto, cpu, cuda, cuda:N or mps.
        out: Picture to write (.png, .svg, .pdf), the numbers beside it; default in RUN/diagnosis.
        json: Print JSON instead of a table; an error too, as an object with error and hint.
    """

    set: str = "standard15"
    corruptions: str | None = None
    severities: str = "1,2,3,4,5"
    published: bool = False
    frost_textures: str | None = None
    test_size: int | None = None
    checkpoint: str = "best"
    seed: int = 0
    batch_size: int = 256
    data_dir: str | None = None
    device: str = "auto"
    out: str | None = None
    json: bool = False


@dataclass(frozen=True, kw_only=True)
class CriticalityOptions:
    """How to measure the criticality of a run's layers.

    Args:
        protocol: release (mini-batch ascent, projection once per epoch, the maximum over epochs) or paper (algorithm
            1: the gradient of all images, projection, stop).
        split: val, test or train; what is chosen by criticality on the test split is selected on test.
        size: Measure on that many images only; default all of the split.
        modules: Layers, comma-separated; default all.
        strategy: cached, wavefront (all layers at once, for a GPU) or naive.
        argmin_only: Stop layers once they cannot be the least critical one.
        rel_step_size: Step of the PGD-10 that makes the images, as a multiple of eps; the release types 2/225, 0.2833.
        checkpoint: best (by validation), final, last, or snapshot-STEP.
        seed: Seed of the attack's starts and of the mini-batches.
        memory: Gigabytes for values that are kept between passes.
        data_dir: Folder with the data set's files, if it has moved.
        device: auto, cpu, cuda, cuda:N or mps.
        out: Picture to write (.png, .svg, .pdf), the numbers beside it as .json; default in RUN/diagnosis.
        json: Print JSON instead of a table; an error too, as an object with error and hint.
    """

    protocol: str = "release"
    split: str = "val"
    size: int | None = None
    modules: str | None = None
    strategy: str = "cached"
    argmin_only: bool = False
    rel_step_size: float = 0.25
    checkpoint: str = "best"
    seed: int = 0
    memory: float = 4.0
    data_dir: str | None = None
    device: str = "auto"
    out: str | None = None
    json: bool = False


@dataclass(frozen=True, kw_only=True)
class EpsOptions:
    """At which budgets to attack a run.

    Args:
        eps_grid: Budgets, as 0:16/255:2/255 (start, end, step) or 0,2/255,4/255; default nine, up to twice the run's.
        attack: One attack: fgsm, pgd-K, pgd-K-R (K steps, R restarts), mma-K, mm3, mm9, mm+.
        norm: Linf or L2; default the run's. Another one than the run's needs --eps-grid.
        minimal: Measure minimal norms with DeepFool too: histogram, and their curve beside the attack's.
        split: test or val.
        test_size: At most that many images.
        checkpoint: best (by validation), final, last, or snapshot-STEP.
        seed: Seed of the random starts.
        batch_size: Images at a time.
        data_dir: Folder with the data set's files, if it has moved.
        device: auto, cpu, cuda, cuda:N or mps.
        out: Picture to write (.png, .svg, .pdf), the numbers beside it as .json and .npz; default in RUN/diagnosis.
        json: Print JSON instead of a table; an error too, as an object with error and hint.
    """

    eps_grid: str | None = None
    attack: str = "pgd-50"
    norm: str | None = None
    minimal: bool = False
    split: str = "test"
    test_size: int | None = None
    checkpoint: str = "best"
    seed: int = 0
    batch_size: int = 256
    data_dir: str | None = None
    device: str = "auto"
    out: str | None = None
    json: bool = False


@dataclass(frozen=True, kw_only=True)
class LandscapeOptions:
    """Around which weights to walk, how far, and on which images.

    Args:
        groups: Layers (conv1), former, middle, latter, whole, five (single layers over the depth), layers (all single
            layers), input; a list.
        inputs: clean, or the attack whose images are used: fgsm, pgd-K, mm3.
        dims: Random directions, 1 (curves) or 2 (maps).
        points: Points along a direction, odd.
        span: Largest coordinate; 1 moves every filter by its own norm. For input the unit is eps.
        checkpoint: Checkpoints, a row each: best, final, last, snapshot-STEP, snapshots (all of these); a list.
        split: test, val or train.
        size: At most that many images.
        budget: Images through the model that are not to be exceeded.
        memory: Gigabytes for values that are kept between points.
        seed: Seed of the directions and of the attack.
        batch_size: Images at a time.
        data_dir: Folder with the data set's files, if it has moved.
        device: auto, cpu, cuda, cuda:N or mps.
        out: Picture to write (.png, .svg, .pdf), the numbers beside it as .json; default in RUN/diagnosis.
        json: Print JSON instead of a table; an error too, as an object with error and hint.
    """

    groups: str = "five,whole"
    inputs: str = "clean"
    dims: int = 2
    points: int = 11
    span: float = 1.0
    checkpoint: str = "final"
    split: str = "test"
    size: int = 256
    budget: int = 2_000_000
    memory: float = 4.0
    seed: int = 0
    batch_size: int = 256
    data_dir: str | None = None
    device: str = "auto"
    out: str | None = None
    json: bool = False


@dataclass(frozen=True, kw_only=True)
class MaskingOptions:
    """On what to judge a run's gradients, and by how much work.

    Args:
        transfer: A second run, against whose model images are made too.
        queries: Queries of Square, the attack without gradients.
        eps: Budget of all attacks, such as 8/255; default the run's.
        norm: Linf or L2; default the run's.
        split: test or val.
        test_size: At most that many images.
        checkpoint: best (by validation), final, last, or snapshot-STEP; of the second run too.
        seed: Seed of the random draws.
        batch_size: Images at a time.
        data_dir: Folder with the data set's files, if it has moved.
        device: auto, cpu, cuda, cuda:N or mps.
        out: Record to write (.json), the outcome of every image beside it as .npz; default in RUN/diagnosis.
        json: Print JSON instead of a table; an error too, as an object with error and hint.
    """

    transfer: str | None = None
    queries: int = 1000
    eps: float | None = None
    norm: str | None = None
    split: str = "test"
    test_size: int | None = 256
    checkpoint: str = "best"
    seed: int = 0
    batch_size: int = 256
    data_dir: str | None = None
    device: str = "auto"
    out: str | None = None
    json: bool = False


@dataclass(frozen=True, kw_only=True)
class ResponseOptions:
    """Which weights to move, how far and which way, and on which images.

    Args:
        groups: layers (all, one by one), five (some, over the depth), former, middle, latter, whole, names; a list.
        rho: How far, percentages of the norm of every layer's weight; a list.
        kinds: Which way: adversarial (up the gradient of the loss), random (filter-normalised); a list.
        inputs: On which images: clean, or attacks: fgsm, pgd-K, mm3; a list.
        remake: Attack every moved model, instead of once the model as it is.
        checkpoint: Checkpoints, two rows each: best, final, last, snapshot-STEP, snapshots (all of these); a list.
        split: test, val or train.
        size: At most that many images.
        seed: Seed of the random directions and of the attacks.
        memory: Gigabytes for values that are kept between passes.
        batch_size: Images at a time.
        data_dir: Folder with the data set's files, if it has moved.
        device: auto, cpu, cuda, cuda:N or mps.
        out: Picture to write (.png, .svg, .pdf), the numbers beside it as .json; default in RUN/diagnosis.
        json: Print JSON instead of a table.
    """

    groups: str = "layers,former,middle,latter"
    rho: str = "0.5,1,2,5"
    kinds: str = "adversarial,random"
    inputs: str = "clean,fgsm,pgd-10"
    remake: bool = False
    checkpoint: str = "final"
    split: str = "test"
    size: int = 256
    seed: int = 0
    memory: float = 4.0
    batch_size: int = 256
    data_dir: str | None = None
    device: str = "auto"
    out: str | None = None
    json: bool = False


@dataclass(frozen=True, kw_only=True)
class ShortcutsOptions:
    """Which weights to remove, and how to measure what is left.

    Args:
        groups: Layers (conv1), former, middle, latter, whole, five (single layers over the depth); a list.
        modes: Which of their weights: largest, smallest, random; a list.
        shares: Percentages of the weights; a list.
        pooled: Rank the layers of a group together, instead of the same share of every layer.
        attack: Two attacks, of one step and of many.
        checkpoint: best (by validation), final, last, or snapshot-STEP.
        split: test or val.
        size: At most that many images.
        seed: Seed of the random weights and of the attacks.
        batch_size: Images at a time.
        data_dir: Folder with the data set's files, if it has moved.
        device: auto, cpu, cuda, cuda:N or mps.
        out: Picture to write (.png, .svg, .pdf), the numbers beside it as .json; default in RUN/diagnosis.
        json: Print JSON instead of a table; an error too, as an object with error and hint.
    """

    groups: str = "former,middle,latter"
    modes: str = "largest,smallest,random"
    shares: str = "1,2,5,10,20,30"
    pooled: bool = False
    attack: str = "fgsm,pgd-10"
    checkpoint: str = "final"
    split: str = "test"
    size: int = 256
    seed: int = 0
    batch_size: int = 256
    data_dir: str | None = None
    device: str = "auto"
    out: str | None = None
    json: bool = False


@dataclass(frozen=True, kw_only=True)
class SpectraOptions:
    """Whose singular values to measure.

    Args:
        layers: Layers (conv1), former, middle, latter, five (single layers over the depth); a list; default all.
        checkpoint: Checkpoints, which are put in the order of their steps: best, final, last, snapshot-STEP, snapshots
            (all of them); a list.
        out: Picture to write (.png, .svg, .pdf), the numbers beside it as .json; default in RUN/diagnosis.
        json: Print JSON instead of a table; an error too, as an object with error and hint.
    """

    layers: str | None = None
    checkpoint: str = "final"
    out: str | None = None
    json: bool = False


@dataclass(frozen=True, kw_only=True)
class OverfittingOptions:
    """Where the history of a training goes.

    Args:
        out: Picture to write (.png, .svg, .pdf), the numbers beside it as .json; default RUN/diagnosis/overfitting.png.
        json: Print JSON instead of tables.
    """

    out: str | None = None
    json: bool = False


@dataclass(frozen=True, kw_only=True)
class RiftOptions:
    """What to fine-tune, where it is selected, and where the result goes.

    Args:
        config: Recipe in YAML; options on the command line win.
        weights: Checkpoint of someone else to start from instead of a run; then with --model and --data, as `import`.
        module: argmin (the least critical layer), top-K, last, all, or names of layers, comma-separated.
        protocol: How criticality is measured: release or paper.
        mrc_split: Images on which criticality is measured: val, test or train.
        mrc_size: That many of them only.
        select: Images on which the epoch and alpha are selected: val or test (then the run is stamped).
        select_size: That many of them only, for alpha.
        bn: update (training mode moves the statistics of every BatchNorm, as the release) or frozen.
        entries: What is interpolated: full-state (BatchNorm's statistics too, as the release) or parameters.
        alphas: Grid of the interpolation, as 0,0.5,1 or 0:1:0.1; with 0.
        tolerance: By how many points robust accuracy may fall. Of the alphas that keep to it the highest clean accuracy
            is taken, of equals the most robust one, then the smallest alpha.
        pgd_runs: Runs of PGD-10 at every alpha; the lowest accuracy counts (the paper: 3).
        rel_step_size: Step of PGD-10 as a multiple of eps; the release types 2/225, 0.2833.
        checkpoint: Checkpoint to start from: best, final, last or snapshot-STEP.
        data_dir: Folder with the data set's files, if it has moved.
        device: auto, cpu, cuda, cuda:N or mps.
        threads: Threads on the CPU; default those of the run.
        run: Run directory to create, or to go on with; default RUN-rift-N.
        attack: Attacks of the final table on the test set, comma-separated.
        test_size: Attack at most that many test images in the final table.
        report: Write the page RUN/report.html at the end.
    """

    config: str | None = None
    weights: str | None = None
    module: str = "argmin"
    protocol: str = "release"
    mrc_split: str = "val"
    mrc_size: int | None = None
    select: str = "val"
    select_size: int | None = None
    bn: str = "update"
    entries: str = "full-state"
    alphas: str = "0:1:0.1"
    tolerance: float = 0.1
    pgd_runs: int = 1
    rel_step_size: float = 0.25
    checkpoint: str = "best"
    data_dir: str | None = None
    device: str = "auto"
    threads: int | None = None
    run: str | None = None
    attack: str = "clean,pgd-10"
    test_size: int | None = None
    report: bool = True


@dataclass(frozen=True, kw_only=True)
class InterpolateOptions:
    """Which models on the line between two runs to measure.

    Args:
        alphas: Grid, as 0,0.5,1 or 0:1:0.1; 0 is the first run, 1 the second, and 0 must be there.
        entries: What is interpolated: full-state (BatchNorm's statistics too) or parameters (the rest is the first's).
        reestimate_bn: Re-estimate BatchNorm's statistics from that many clean training images at every alpha between.
        split: val or test.
        size: That many images only.
        tolerance: By how many points robust accuracy may fall for the alpha that is named: the highest clean accuracy
            among those, of equals the most robust one, then the smallest alpha.
        pgd_runs: Runs of PGD-10 at every alpha; the lowest accuracy counts.
        rel_step_size: Step of PGD-10 as a multiple of eps.
        checkpoint: Checkpoint of both runs, or one for each, comma-separated: best, final, last or snapshot-STEP; of a
            fine-tuned run base or finetuned too.
        seed: Seed of the attack's starts.
        data_dir: Folder with the data set's files, if it has moved.
        device: auto, cpu, cuda, cuda:N or mps.
        out: Picture to write (.png, .svg, .pdf), the numbers beside it as .json; default in the second run.
        json: Print JSON instead of a table; an error too, as an object with error and hint.
    """

    alphas: str = "0:1:0.1"
    entries: str = "full-state"
    reestimate_bn: int | None = None
    split: str = "val"
    size: int | None = None
    tolerance: float = 0.1
    pgd_runs: int = 1
    rel_step_size: float = 0.25
    checkpoint: str = "best"
    seed: int = 0
    data_dir: str | None = None
    device: str = "auto"
    out: str | None = None
    json: bool = False


@dataclass(frozen=True, kw_only=True)
class ReportOptions:
    """What the page shows besides the records of the runs, and where it goes.

    Args:
        out: Page to write (.html), with the same as .json beside it; default RUN/report.html.
        examples: Test images to attack and show; 0 for none, which needs no data.
        data_dir: Folder with the data set's files, if it has moved.
        device: auto, cpu, cuda, cuda:N or mps.
    """

    out: str | None = None
    examples: int = 8
    data_dir: str | None = None
    device: str = "auto"


@dataclass(frozen=True, kw_only=True)
class SweepOptions:
    """Which rows of a sweep to run, where, and what to print.

    Args:
        root: Folder for the runs, their logs and the tables; default runs/NAME of the file's name.
        jobs: Commands at a time; default the file's, or one per device.
        devices: Devices to hand out, comma-separated, such as cuda:0,cuda:1; default what the rows say.
        only: Only rows with these labels, comma-separated, and what they start from.
        dry_run: Print the commands that are still to be run, and run nothing.
        table: Print where the runs are and the table, and run nothing.
        executor: local, or slurm: submit a job per row and seed (needs submitit).
        slurm: Parameters of SLURM, key=value, comma-separated, such as partition=gpu,timeout_min=600,gpus_per_node=1.
        interval: student or bootstrap (over seeds), or images (over seeds and test images).
        markdown: Print the table as Markdown.
        csv: Print the table as CSV.
        json: Print JSON instead of tables; an error too, as an object with error and hint.
    """

    root: str | None = None
    jobs: int | None = None
    devices: str | None = None
    only: str | None = None
    dry_run: bool = False
    table: bool = False
    executor: str = "local"
    slurm: str | None = None
    interval: str = "student"
    markdown: bool = False
    csv: bool = False
    json: bool = False


@dataclass(frozen=True, kw_only=True)
class DemoOptions:
    """Where the demonstration goes.

    Args:
        run: Folder to create for its two runs and the page; default runs/demo-N.
        test_size: Test images that AutoAttack attacks.
        device: auto, cpu, cuda, cuda:N or mps.
    """

    run: str | None = None
    test_size: int = 64
    device: str = "auto"
