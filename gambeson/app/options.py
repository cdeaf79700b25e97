"""Options of the commands. With the method's signature and `Settings` they are the schema of command line and YAML."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class TrainOptions:
    """What to train on, and where the result goes.

    Args:
        data: digits, mnist, fashion-mnist, cifar10, cifar100, svhn, tiny-imagenet, folder:PATH or npz:PATH.
        data_dir: Folder with the data set's files; else $GAMBESON_DATA, else a cache to which they are downloaded.
        verify: Check the files that are already there against the published checksums.
        val_fraction: Share of the training set held out for validation and selection, stratified; 0 selects nothing.
        train_size: Train on that many images only, stratified.
        size: Side to which a folder's images are resized, pixels.
        model: Network, see `gambeson list models`.
        width: Channels of the network's first stage; fewer for work on a CPU.
        ema: Decay of a moving average of the weights, which is then validated and saved; such as 0.995.
        device: auto, cpu, cuda, cuda:N or mps.
        threads: Threads on the CPU; default torch's choice. A tiny network is faster with one.
        run: Run directory to create; default runs/DATA-METHOD-N.
        attack: Attacks of the final table on the test set, comma-separated.
        test_size: Attack only that many test images in the final table.
        tensorboard: Write the metrics for TensorBoard too.
    """

    data: str = "digits"
    data_dir: str | None = None
    verify: bool = False
    val_fraction: float = 0.05
    train_size: int | None = None
    size: int | None = None
    model: str = "preact-resnet18"
    width: int | None = None
    ema: float | None = None
    device: str = "auto"
    threads: int | None = None
    run: str | None = None
    attack: str = "clean,fgsm,pgd-50"
    test_size: int | None = None
    tensorboard: bool = False


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions:
    """What to measure.

    Args:
        attack: Attacks, comma-separated: clean, fgsm, pgd-K, pgd-K-R (K steps, R restarts), mma-K, mm3, mm9, mm+.
        checkpoint: best (by validation), final, or last.
        eps: Budget; default the run's.
        norm: Linf or L2; default the run's.
        split: test or val.
        test_size: Only that many images.
        data: Another data set with the same classes.
        data_dir: Folder with the data set's files.
        batch_size: Images at a time.
        seed: Seed of the random starts.
        device: auto, cpu, cuda, cuda:N or mps.
        per_class: Print accuracies by class.
        json: Print JSON instead of tables.
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
    device: str = "auto"
    per_class: bool = False
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
        json: Print JSON instead of tables.
    """

    root: str = "runs"
    plot: str | None = None
    json: bool = False


@dataclass(frozen=True, kw_only=True)
class CamOptions:
    """Which maps of a run to look at.

    Args:
        checkpoint: best (by validation), final, or last.
        split: test or val.
        images: Images in the picture, evenly over those measured.
        test_size: Measure only that many images.
        cam: gradcam, xgradcam or layercam; default the run's, else gradcam.
        layer: Module whose output the maps are made of; default the run's, else the last spatial feature map.
        mask: Which pixels have the full budget: zscore[:T], quantile[:Q] or jet; default the run's, else zscore.
        data_dir: Folder with the data set's files, if it has moved.
        device: auto, cpu, cuda, cuda:N or mps.
        batch_size: Images at a time.
        out: Picture to write (.png, .svg, .pdf), the numbers beside it as .json; default RUN/diagnosis/cam.png.
        json: Print JSON instead of a table.
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
        json: Print JSON instead of tables.
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
