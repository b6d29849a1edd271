"""The configuration of a run: one frozen dataclass a YAML section.

Owns the names, types, defaults, units and rules of every setting. Does not read files (see
`resnet_dist.config_load`), never imports torch, and never holds a derived value.

Fields marked with `exact=False` do not change the mathematics of a run: a run may be resumed with
another value of them. All others are part of "training is a pure function of (config, seed, step)".
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from resnet_dist.config.augment import AugmentFields
from resnet_dist.config.dali import DaliFields
from resnet_dist.config.memory import MemoryFields
from resnet_dist.config.rules import Rules, free
from resnet_dist.config.speed import SpeedFields


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Which run this is, where it lives, and how it starts."""

    name: str = free("quickstart")
    """Name of the run; its folder is `runs/<name>` unless `run.dir` is set."""
    dir: str | None = free(None)
    """Run folder: resolved config, versions, logs, checkpoints, curves.png."""
    resume: str = free("auto")
    """auto: go on in the run folder if it holds a checkpoint; never: start anew in an empty folder;
    required: fail if there is no checkpoint; PATH: start from that checkpoint file."""
    evaluate_only: bool = free(False)
    """Evaluate the checkpoint that `run.resume` names, train nothing."""
    allow_config_change: bool = free(False)
    """Resume although settings that change the mathematics differ from the checkpoint's."""


@dataclass(frozen=True, kw_only=True)
class DataConfig(AugmentFields, DaliFields, MemoryFields):
    """What is read, and how it becomes a batch. More fields are in `resnet_dist.config.augment`,
    `resnet_dist.config.dali` and `resnet_dist.config.memory`."""

    root: str | None = free(None)
    """Folder with one folder a split, each with one folder a class or packed by
    resnet_dist.prepare. None: the embedded data set."""
    train_split: str = free("train")
    """Name of the training folder below `data.root`."""
    val_split: str = free("val")
    """Name of the validation folder below `data.root`."""
    order: Literal["shuffled", "blocked"] = "shuffled"
    """shuffled: any sample may follow any other; blocked: only a few shards are in use at a time
    and are read whole, for cold network storage (needs what resnet_dist.prepare writes)."""
    blocked_window: int = 16
    """Shards in use at a time (blocked only): of 1024 samples each, as thorough as a shuffle buffer
    of 16 times as many."""
    loader: Literal["auto", "dali", "torch", "memory", "synthetic"] = free("auto")
    """auto: dali on a GPU, torch on CPU (as fast there, and closer to Pillow: docs/benchmarks).
    memory: everything decoded once and held on the device, for images of one small size."""
    train_size: int = 224
    """Side of a training crop, pixels."""
    eval_size: int = 224
    """Side of the centre crop for evaluation, pixels."""
    eval_resize_size: int = 256
    """Length of the shorter side before the centre crop, pixels."""
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"
    """Filter of every resize; always antialiased."""
    crop: Literal["random_resized", "pad_reflect"] = "random_resized"
    """random_resized: torchvision's RandomResizedCrop; pad_reflect: shift by up to `crop_padding`
    pixels with reflected borders (CIFAR)."""
    crop_scale: tuple[float, float] = (0.08, 1.0)
    """Range of the crop's share of the image's area."""
    crop_ratio: tuple[float, float] = (0.75, 1.3333333333333333)
    """Range of the crop's width / height, drawn on a log scale."""
    crop_padding: int = 4
    """Padding of `pad_reflect` on each side, pixels."""
    flip_probability: float = 0.5
    """Probability of a horizontal flip."""
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    """Mean of R, G, B on a scale of 0 to 1."""
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    """Standard deviation of R, G, B on a scale of 0 to 1."""
    num_workers: int | None = free(None)
    """Loader processes (torch; memory, while it is filled) or threads (dali) of each rank. None:
    cores / ranks of the node."""
    prefetch_batches: int = free(2)
    """Batches in flight for each rank (dali) or each worker (torch)."""
    cache_dir: str | None = free(None)
    """Where indexes and the embedded data set are kept. None: ~/.cache/resnet_dist."""
    local_cache_dir: str | None = free(None)
    """Folder on a disk of the node: what was read once from shards on shared storage is read from
    there afterwards, also by later runs. None: nothing is kept."""
    local_cache_gib: float = free(100.0)
    """Most that is kept there of each split, GiB: its first shards."""

    def __post_init__(self) -> None:
        rules = Rules()
        rules.require(
            self.local_cache_gib > 0,
            "data.local_cache_gib",
            self.local_cache_gib,
            "must be positive",
            "leave out data.local_cache_dir to keep nothing",
        )
        rules.require(
            1 <= self.blocked_window < 2**16,
            "data.blocked_window",
            self.blocked_window,
            "must lie in [1, 65535]",
            "16 is the default",
        )
        for name in ("train_size", "eval_size", "eval_resize_size", "prefetch_batches"):
            value = getattr(self, name)
            rules.require(
                value >= 1, f"data.{name}", value, "must be at least 1", "give pixels > 0"
            )
        rules.require(
            self.eval_size <= self.eval_resize_size,
            "data.eval_size",
            self.eval_size,
            f"must not exceed data.eval_resize_size ({self.eval_resize_size})",
            "the centre crop is cut from the resized image",
        )
        low, high = self.crop_scale
        rules.require(
            0 < low <= high <= 1,
            "data.crop_scale",
            self.crop_scale,
            "needs 0 < low <= high <= 1",
            "ImageNet's standard is [0.08, 1.0]",
        )
        low, high = self.crop_ratio
        rules.require(
            0 < low <= high,
            "data.crop_ratio",
            self.crop_ratio,
            "needs 0 < low <= high",
            "ImageNet's standard is [0.75, 1.3333]",
        )
        rules.require(
            0 <= self.flip_probability <= 1,
            "data.flip_probability",
            self.flip_probability,
            "must lie in [0, 1]",
            "0.5 is the standard",
        )
        rules.require(
            min(self.std) > 0, "data.std", self.std, "must be positive", "use the data set's std"
        )
        rules.require(
            self.num_workers is None or self.num_workers >= 1,
            "data.num_workers",
            self.num_workers,
            "must be at least 1",
            "leave it out to use cores / ranks of the node",
        )
        rules.require(
            self.crop_padding >= 0,
            "data.crop_padding",
            self.crop_padding,
            "must not be negative",
            "CIFAR's standard is 4",
        )
        smallest, name = self.train_size, "data.train_size"
        if self.progressive_start_size is not None and self.progressive_start_size < smallest:
            smallest, name = self.progressive_start_size, "data.progressive_start_size"
        rules.require(
            self.crop != "pad_reflect" or self.crop_padding < smallest,
            "data.crop_padding",
            self.crop_padding,
            f"must be less than {name} ({smallest}), a reflection's most",
            "CIFAR's standard is 4",
        )
        self.check_augmentation(rules, train_size=self.train_size)
        self.check_dali(rules)
        self.check_memory(
            rules,
            loader=self.loader,
            crop=self.crop,
            progressive_start_size=self.progressive_start_size,
        )
        rules.enforce()


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The network."""

    name: str = "resnet50"
    """resnet18, resnet34, resnet50, resnet101, resnet152 or resnet9 (32x32 images)."""
    num_classes: int | None = None
    """Outputs. None: the number of classes of the data."""
    width: int = 64
    """Channels of the first stage; 64 is the published network."""
    stride: Literal["v1", "v1.5"] = "v1.5"
    """Where a bottleneck downsamples: v1 in its first 1x1, v1.5 in its 3x3 convolution."""
    stem: Literal["standard", "d", "cifar"] = "standard"
    """standard: 7x7/2 + max-pool; d: ResNet-D (three 3x3, average-pool shortcuts); cifar: 3x3/1."""
    zero_init_last_gamma: bool = True
    """Start every residual branch at zero (Goyal et al. 2017, section 5.1)."""
    batch_norm_momentum: float = 0.1
    """Weight of the newest batch in the running statistics (PyTorch's convention)."""
    batch_norm_eps: float = 1e-5
    """Added to the variance."""

    def __post_init__(self) -> None:
        rules = Rules()
        rules.require(
            self.num_classes is None or self.num_classes >= 2,
            "model.num_classes",
            self.num_classes,
            "must be at least 2",
            "leave it out to use the number of class folders",
        )
        rules.require(
            self.width >= 8, "model.width", self.width, "must be at least 8", "64 is standard"
        )
        rules.enforce()


@dataclass(frozen=True, kw_only=True)
class TrainConfig(SpeedFields):
    """One optimisation step, and how many of them. More are in `resnet_dist.config.speed`."""

    global_batch_size: int = 256
    """Samples of one step over all ranks. Local and micro-batches follow from it."""
    epochs: int = 90
    """Passes over the training data; the schedules span them."""
    max_steps: int | None = free(None)
    """Stop after this many steps without changing the schedules; None: all epochs."""
    max_micro_batch_size: int | None = free(None)
    """Most samples in one forward pass of a rank (memory); None: no limit."""
    accumulation_steps: int | None = None
    """Micro-batches a step. None: the fewest that `max_micro_batch_size` allows. Pin it to keep
    the groups of batch norm the same for every world size."""
    precision: Literal["float32", "bfloat16", "float16"] = "bfloat16"
    """Autocast type of the forward pass; float16 adds loss scaling. Weights stay float32."""
    channels_last: bool = True
    """NHWC memory format."""
    sync_batch_norm: bool = True
    """Batch statistics over all ranks: the world size does not change the loss curve."""
    label_smoothing: float = 0.0
    """Share of the target spread evenly over all classes (Szegedy et al. 2016)."""
    loss: Literal["cross_entropy", "binary_cross_entropy"] = "cross_entropy"
    """Of the training; the validation loss is always the cross-entropy. binary_cross_entropy: one
    yes-or-no question a class (Wightman et al. 2021, section 2)."""
    bce_sum_classes: bool = False
    """Add up the binary cross-entropies of a sample's classes (timm's --bce-sum, composer) instead
    of taking their mean (timm's default)."""
    bce_target_threshold: float | None = None
    """Binary cross-entropy: targets above it count as 1, others as 0 (timm's --bce-target-thresh;
    0.2 in the recipes A1 to A3). null: targets as they are."""
    clip_grad_norm: float | None = None
    """Largest L2 norm of the whole gradient."""
    clip_grad_value: float | None = None
    """Largest absolute value of a gradient element."""
    ema_decay: float | None = None
    """Decay of an exponential moving average of the weights, evaluated too. None: none is kept."""
    ema_every_steps: int = 1
    """Steps between updates of the average."""
    num_threads: int | None = free(None)
    """CPU threads of each rank's tensor operations. None: cores / ranks of the node (1 for networks
    narrower than 16 channels)."""
    deterministic: bool = free(False)
    """Deterministic GPU kernels: bit for bit equal runs, slower. CPU runs always are."""

    def __post_init__(self) -> None:
        rules = Rules()
        for name in ("global_batch_size", "epochs", "ema_every_steps"):
            value = getattr(self, name)
            rules.require(
                value >= 1, f"train.{name}", value, "must be at least 1", "give a count > 0"
            )
        for name in ("max_steps", "max_micro_batch_size", "accumulation_steps", "num_threads"):
            value = getattr(self, name)
            rules.require(
                value is None or value >= 1,
                f"train.{name}",
                value,
                "must be at least 1",
                "leave it out for the default",
            )
        rules.require(
            0 <= self.label_smoothing < 1,
            "train.label_smoothing",
            self.label_smoothing,
            "must lie in [0, 1)",
            "0.1 is usual",
        )
        for name in ("bce_sum_classes", "bce_target_threshold"):
            value = getattr(self, name)
            rules.require(
                self.loss == "binary_cross_entropy" or not value,
                f"train.{name}",
                value,
                "needs train.loss=binary_cross_entropy",
                "leave it out, or set that loss",
            )
        rules.require(
            self.bce_target_threshold is None or 0 <= self.bce_target_threshold < 1,
            "train.bce_target_threshold",
            self.bce_target_threshold,
            "must lie in [0, 1)",
            "0.2 is usual",
        )
        rules.require(
            self.clip_grad_norm is None or self.clip_grad_value is None,
            "train.clip_grad_norm",
            self.clip_grad_norm,
            "excludes train.clip_grad_value",
            "set one of the two to null",
        )
        for name in ("clip_grad_norm", "clip_grad_value"):
            value = getattr(self, name)
            rules.require(
                value is None or value > 0,
                f"train.{name}",
                value,
                "must be positive",
                "null turns clipping off",
            )
        rules.require(
            self.ema_decay is None or 0 < self.ema_decay < 1,
            "train.ema_decay",
            self.ema_decay,
            "must lie in (0, 1)",
            "null turns the average off",
        )
        self.check_speed(rules, channels_last=self.channels_last, precision=self.precision)
        rules.enforce()


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """The optimizer."""

    name: Literal["sgd", "adam", "adamw", "lars", "lamb"] = "sgd"
    """sgd couples weight decay to the gradient, and so does adam; adamw decouples it. lars and lamb
    are sgd and adamw with a learning rate of its own for each layer, for large batches."""
    lr: float = 0.1
    """Peak learning rate for `train.global_batch_size`."""
    momentum: float = 0.9
    """sgd and lars only."""
    nesterov: bool = False
    """sgd only."""
    betas: tuple[float, float] = (0.9, 0.999)
    """adam, adamw and lamb only."""
    eps: float = 1e-8
    """adam, adamw and lamb only."""
    trust_coefficient: float = 0.001
    """lars only: a layer's update as a share of its weights, by norm, at learning rate 1."""
    weight_decay: float = 1e-4
    """On convolution and linear weights."""
    decay_norm_and_bias: bool = False
    """Also decay batch norm's parameters and biases (torchvision's first recipes did)."""

    def __post_init__(self) -> None:
        rules = Rules()
        rules.require(self.lr > 0, "optim.lr", self.lr, "must be positive", "0.1 per 256 is usual")
        rules.require(
            self.weight_decay >= 0,
            "optim.weight_decay",
            self.weight_decay,
            "must not be negative",
            "0 turns it off",
        )
        rules.require(
            0 <= self.momentum < 1,
            "optim.momentum",
            self.momentum,
            "must lie in [0, 1)",
            "0.9 is usual",
        )
        rules.require(
            self.trust_coefficient > 0,
            "optim.trust_coefficient",
            self.trust_coefficient,
            "must be positive",
            "0.001 is usual",
        )
        rules.require(
            not self.nesterov or self.momentum > 0,
            "optim.nesterov",
            self.nesterov,
            "needs optim.momentum > 0",
            "set optim.momentum=0.9",
        )
        rules.require(
            all(0 <= beta < 1 for beta in self.betas),
            "optim.betas",
            self.betas,
            "must lie in [0, 1)",
            "[0.9, 0.999] is usual",
        )
        rules.enforce()


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    """The learning rate as a function of the step."""

    name: Literal["cosine", "step", "polynomial", "one_cycle", "constant"] = "cosine"
    """The shape after the warm-up."""
    warmup_epochs: float = 0.0
    """Length of the linear warm-up, epochs (fractions allowed). Not for one_cycle."""
    warmup_start_factor: float = 0.0
    """Learning rate at step 0 as a share of the peak."""
    final_lr: float = 0.0
    """Learning rate after the last step (cosine, polynomial)."""
    milestones: tuple[float, ...] = (30.0, 60.0, 80.0)
    """Epochs at which the step schedule multiplies by `step_factor`."""
    step_factor: float = 0.1
    """Factor of the step schedule."""
    power: float = 2.0
    """Exponent of the polynomial schedule."""
    peak_share: float = 0.3
    """Share of the steps before one_cycle's peak (`pct_start`)."""
    start_divisor: float = 25.0
    """one_cycle starts at lr / start_divisor (`div_factor`)."""
    final_divisor: float = 1e4
    """one_cycle ends at lr / start_divisor / final_divisor (`final_div_factor`)."""
    cycle_momentum: bool = True
    """one_cycle also moves the momentum (Adam's beta1), against the learning rate, in place of
    `optim.momentum` and `optim.betas[0]`: OneCycleLR's default."""
    base_momentum: float = 0.85
    """Momentum at one_cycle's peak."""
    max_momentum: float = 0.95
    """Momentum at one_cycle's start and end."""

    def __post_init__(self) -> None:
        rules = Rules()
        rules.require(
            self.warmup_epochs >= 0,
            "schedule.warmup_epochs",
            self.warmup_epochs,
            "must not be negative",
            "0 turns the warm-up off",
        )
        rules.require(
            self.name != "one_cycle" or self.warmup_epochs == 0,
            "schedule.warmup_epochs",
            self.warmup_epochs,
            "does not go with schedule.name=one_cycle",
            "one_cycle has its own rise: set schedule.peak_share",
        )
        rules.require(
            list(self.milestones) == sorted(self.milestones),
            "schedule.milestones",
            self.milestones,
            "must rise",
            "for example [30, 60, 80]",
        )
        rules.require(
            0 < self.peak_share < 1,
            "schedule.peak_share",
            self.peak_share,
            "must lie in (0, 1)",
            "0.3 is usual",
        )
        rules.require(
            0 <= self.base_momentum <= self.max_momentum < 1,
            "schedule.base_momentum",
            self.base_momentum,
            f"needs 0 <= base_momentum <= max_momentum ({self.max_momentum!r}) < 1",
            "0.85 and 0.95 are usual",
        )
        for name in ("start_divisor", "final_divisor"):
            value = getattr(self, name)
            rules.require(
                value > 0, f"schedule.{name}", value, "must be positive", "leave out the default"
            )
        rules.enforce()


@dataclass(frozen=True, kw_only=True)
class EvalConfig:
    """Evaluation."""

    batch_size: int = free(256)
    """Samples of one forward pass. Whole batches go to the ranks in turn."""
    every_epochs: int = free(1)
    """Epochs between evaluations; the last epoch is always evaluated."""
    flip: bool = False
    """Evaluate each image and its mirror image, and take the mean of the logits (ffcv's test-time
    augmentation). Twice the work."""

    def __post_init__(self) -> None:
        rules = Rules()
        for name in ("batch_size", "every_epochs"):
            value = getattr(self, name)
            rules.require(
                value >= 1, f"eval.{name}", value, "must be at least 1", "give a count > 0"
            )
        rules.enforce()


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """When to save, and what to keep."""

    every_steps: int | None = free(None)
    """Steps between saves, besides those at the end of epochs."""
    every_epochs: int = free(1)
    """Epochs between saves; the last step is always saved."""
    keep_last: int = free(3)
    """Newest checkpoints to keep."""
    keep_best: bool = free(True)
    """Also keep the checkpoint of the best validation top-1, as best.pt."""
    max_failures: int = free(10)
    """Saves that may fail one after another (a full disk) before the run ends."""

    def __post_init__(self) -> None:
        rules = Rules()
        rules.require(
            self.every_steps is None or self.every_steps >= 1,
            "checkpoint.every_steps",
            self.every_steps,
            "must be at least 1",
            "null saves at the end of epochs only",
        )
        for name in ("every_epochs", "keep_last", "max_failures"):
            value = getattr(self, name)
            rules.require(
                value >= 1, f"checkpoint.{name}", value, "must be at least 1", "1 or more"
            )
        rules.enforce()


@dataclass(frozen=True, kw_only=True)
class LogConfig:
    """What is shown and recorded."""

    every_steps: int = free(50)
    """Steps between records; the device is read only then."""
    tensorboard: bool = free(True)
    """Write TensorBoard events to the run folder."""
    progress: Literal["auto", "bar", "lines"] = free("auto")
    """auto: a bar on a terminal, a line a record otherwise."""

    def __post_init__(self) -> None:
        rules = Rules()
        rules.require(
            self.every_steps >= 1, "log.every_steps", self.every_steps, "must be at least 1", "50"
        )
        rules.enforce()


@dataclass(frozen=True, kw_only=True)
class DistConfig:
    """The process group."""

    device: Literal["auto", "cuda", "cpu"] = free("auto")
    """auto: a GPU for each rank where there are any; cuda: refuse to train on CPUs."""
    timeout_s: float = free(600.0)
    """A collective that takes longer ends the run (so that it can be restarted), seconds."""
    bucket_cap_mb: float = free(25.0)
    """Size of DDP's gradient buckets, MiB."""
    gradient_dtype: Literal["float32", "bfloat16"] = "float32"
    """Type in which gradients travel between ranks. bfloat16 halves the traffic, and rounds each
    rank's share and every partial sum of them to 8 bits: not the same mathematics."""
    static_graph: bool = free(False)
    """Tell DDP that every step uses the same parameters in the same way (they do): it then need not
    look. The all-reduce of the first step of a process is not overlapped."""
    world_size: int | None = free(None)
    """Number of ranks to insist on. None: whatever torchrun started."""
    flight_recorder_entries: int = free(2000)
    """Collectives that NCCL keeps in mind and writes to `flight_recorder/` in the run folder when
    one times out, about 1 KB each. 0: none."""

    def __post_init__(self) -> None:
        rules = Rules()
        for name in ("timeout_s", "bucket_cap_mb"):
            value = getattr(self, name)
            rules.require(
                value > 0, f"dist.{name}", value, "must be positive", "leave out the default"
            )
        rules.require(
            self.world_size is None or self.world_size >= 1,
            "dist.world_size",
            self.world_size,
            "must be at least 1",
            "leave it out to take what torchrun started",
        )
        rules.require(
            self.flight_recorder_entries >= 0,
            "dist.flight_recorder_entries",
            self.flight_recorder_entries,
            "must not be negative",
            "0 turns it off",
        )
        rules.enforce()


@dataclass(frozen=True, kw_only=True)
class FaultsConfig:
    """What is watched while the run goes on, and when it gives up."""

    max_skipped_steps: int = free(20)
    """Steps in a row whose loss or gradients are not finite. They are skipped (no update); after
    as many the run goes back to its last good checkpoint once, and then stops with a diagnosis."""
    watchdog_s: float | None = free(1200.0)
    """A rank that gets no further for this long writes down its stacks and ends, so that it can be
    started again, seconds. More than dist.timeout_s, so that an error has the first word. null: no
    watchdog."""
    replica_check_every_steps: int | None = free(500)
    """Steps between comparisons of all ranks' weights; also before the checkpoint of an epoch.
    null: never."""
    straggler_factor: float = free(1.5)
    """A rank is named as slow when it takes this many times the median rank's time."""

    def __post_init__(self) -> None:
        rules = Rules()
        rules.require(
            self.max_skipped_steps >= 1,
            "faults.max_skipped_steps",
            self.max_skipped_steps,
            "must be at least 1",
            "20 lets float16's loss scale settle",
        )
        rules.require(
            self.watchdog_s is None or self.watchdog_s > 0,
            "faults.watchdog_s",
            self.watchdog_s,
            "must be positive",
            "null turns it off",
        )
        rules.require(
            self.replica_check_every_steps is None or self.replica_check_every_steps >= 1,
            "faults.replica_check_every_steps",
            self.replica_check_every_steps,
            "must be at least 1",
            "null turns it off",
        )
        rules.require(
            self.straggler_factor > 1,
            "faults.straggler_factor",
            self.straggler_factor,
            "must exceed 1",
            "1.5 is the default",
        )
        rules.enforce()


@dataclass(frozen=True, kw_only=True)
class Config:
    """A whole run."""

    seed: int = 0
    """Everything random is a function of it and the position (see `resnet_dist.rng`)."""
    run: RunConfig = field(default_factory=RunConfig)
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    log: LogConfig = field(default_factory=LogConfig)
    dist: DistConfig = field(default_factory=DistConfig)
    faults: FaultsConfig = field(default_factory=FaultsConfig)

    def __post_init__(self) -> None:
        rules = Rules()
        rules.require(
            0 <= self.seed < 2**63, "seed", self.seed, "must lie in [0, 2**63)", "0 is fine"
        )
        rules.require(
            self.schedule.warmup_epochs < self.train.epochs,
            "schedule.warmup_epochs",
            self.schedule.warmup_epochs,
            f"must be less than train.epochs ({self.train.epochs})",
            "shorten the warm-up or train longer",
        )
        rules.require(
            self.data.repeats == 1 or 2 * self.data.repeats <= self.train.global_batch_size,
            "data.repeats",
            self.data.repeats,
            f"must be at most half of train.global_batch_size ({self.train.global_batch_size})",
            "3 or 4 is usual",
        )
        rules.require(
            self.data.image_dtype in ("float32", self.train.precision),
            "data.image_dtype",
            self.data.image_dtype,
            f"must be float32 or train.precision ({self.train.precision})",
            "another type would be rounded twice",
        )
        rules.require(
            not self.data.pad_channels or self.model.name != "resnet9",
            "data.pad_channels",
            self.data.pad_channels,
            "does not go with model.name=resnet9, which takes three channels",
            "leave it out",
        )
        rules.enforce()
