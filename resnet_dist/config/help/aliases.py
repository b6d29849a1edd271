"""The words that everybody types, and the key (or the sentence) that answers them.

Nothing here is accepted in place of a key: an alias only leads to it.
"""

from __future__ import annotations

KEYS = {
    "train.global_batch_size": "batch_size batch bs batchsize train_batch_size global_batch "
    "per_gpu_batch_size local_batch_size per_device_train_batch_size",
    "train.max_micro_batch_size": "micro_batch micro_batch_size microbatch",
    "train.auto_micro_batch": "auto_batch_size auto_scale_batch_size find_executable_batch_size "
    "device_train_microbatch_size oom",
    "train.accumulation_steps": "accum accum_steps grad_accum gradient_accumulation "
    "grad_accum_steps gradient_accumulation_steps accumulate_grad_batches",
    "train.epochs": "epochs num_epochs n_epochs max_epochs num_train_epochs",
    "train.max_steps": "max_steps max_iters max_iterations iterations num_steps total_steps "
    "steps limit_train_batches",
    "train.precision": "amp fp16 bf16 fp32 half mixed_precision precision dtype use_amp amp_dtype",
    "train.loss_scale": "static_loss_scale loss_scale",
    "train.channels_last": "channels_last nhwc memory_format",
    "train.sync_batch_norm": "sync_bn syncbn sync_batchnorm",
    "train.clip_grad_norm": "clip clip_grad clip_norm grad_clip gradient_clip max_grad_norm "
    "gradient_clip_val clip_grad_norm",
    "train.ema_decay": "ema model_ema ema_decay model_ema_decay use_ema",
    "train.ema_every_steps": "model_ema_steps ema_steps",
    "train.ema_ramp": "model_ema_warmup ema_warmup",
    "train.sam_rho": "sam rho",
    "train.sync_batch_norm_ranks": "bn_group bn_group_size process_group",
    "loss.name": "loss criterion loss_fn bce bce_loss",
    "loss.teacher": "teacher kd distillation distill teacher_model teacher_path",
    "loss.teacher_weight": "kd_alpha distillation_alpha kd_loss_weight",
    "loss.teacher_temperature": "kd_temperature distillation_tau temperature",
    "loss.label_smoothing": "label_smoothing smoothing ls",
    "optim.lr": "lr learning_rate base_lr max_lr peak_lr lr_peak",
    "optim.lr_batch_size": "lr_base_size reference_batch_size scale_lr auto_scale_lr",
    "optim.weight_decay": "wd weight_decay l2",
    "optim.momentum": "momentum sgd_momentum",
    "optim.name": "optimizer opt optim_name optimiser",
    "optim.betas": "betas beta1 beta2 opt_betas adam_beta1 adam_beta2",
    "optim.eps": "opt_eps adam_eps adam_epsilon",
    "optim.decay_norm_and_bias": "bn_weight_decay norm_weight_decay bn_wd no_bias_decay",
    "schedule.name": "scheduler sched lr_scheduler lr_schedule schedule_name",
    "schedule.warmup_epochs": "warmup warmup_epochs lr_warmup_epochs warmup_steps warm_up",
    "schedule.warmup_start_factor": "warmup_lr lr_warmup_decay warmup_start_lr",
    "schedule.final_lr": "min_lr lr_min end_lr eta_min final_lr",
    "schedule.milestones": "milestones decay_milestones decay_epochs lr_step_size lr_steps",
    "schedule.step_factor": "gamma lr_gamma decay_rate",
    "model.name": "arch model architecture net network backbone model_name",
    "model.weights": "pretrained weights pretrained_weights init_weights initial_checkpoint "
    "pretrained_path",
    "model.freeze": "freeze freeze_backbone freeze_bn frozen_stages",
    "model.stochastic_depth": "drop_path drop_path_rate stochastic_depth",
    "model.blur_pool": "blurpool blur_pool antialias aa_layer",
    "model.num_classes": "num_classes classes n_classes nb_classes",
    "model.zero_init_last_gamma": "zero_init zero_init_residual zero_gamma",
    "model.batch_norm_momentum": "bn_momentum",
    "model.batch_norm_eps": "bn_eps",
    "data.root": "data data_dir data_path dataset root data_root train_dir imagenet path "
    "dataset_path",
    "data.val_split": "val_dir val val_path",
    "data.train_size": "img_size image_size input_size crop_size train_crop_size resolution res "
    "size imgsz",
    "data.eval_size": "val_crop_size eval_crop_size test_size",
    "data.eval_resize_size": "val_resize_size resize_size resize crop_pct",
    "augment.mixup_alpha": "mixup mixup_alpha",
    "augment.cutmix_alpha": "cutmix cutmix_alpha",
    "augment.mix_probability": "mixup_prob mixup_probability",
    "augment.mix_switch_probability": "mixup_switch_prob",
    "augment.erase_probability": "random_erase reprob erase random_erasing",
    "augment.auto_augment": "auto_augment autoaugment aa randaugment trivial_augment",
    "augment.ra_magnitude": "ra_magnitude magnitude",
    "augment.ra_magnitude_std": "mstd magnitude_std",
    "augment.lighting": "pca_noise pca_lighting max_random_pca_noise color_noise",
    "augment.color_jitter": "color_jitter colour_jitter jitter",
    "augment.ra_reps": "ra_reps ra_sampler repeats repeated_aug repeated_augmentation aug_repeats",
    "data.num_workers": "workers num_workers n_workers j dataloader_num_workers",
    "data.loader": "loader dataloader dali use_dali",
    "data.mean": "mean",
    "data.std": "std",
    "augment.flip_probability": "hflip flip horizontal_flip",
    "run.resume": "resume checkpoint ckpt resume_from load weights_path resume_from_checkpoint "
    "ckpt_path",
    "run.name": "name run_name exp_name experiment job_name",
    "run.dir": "output_dir out output outdir save_dir work_dir workdir log_dir logdir run_dir",
    "run.evaluate_only": "evaluate test_only eval_only validate only_eval test",
    "seed": "seed random_seed manual_seed",
    "eval.every_epochs": "eval_freq val_interval eval_interval eval_every val_every "
    "check_val_every_n_epoch",
    "eval.batch_size": "val_batch_size eval_batch_size test_batch_size validation_batch_size",
    "checkpoint.every_steps": "save_steps checkpoint_steps",
    "checkpoint.every_epochs": "save_freq save_interval save_every checkpoint_interval",
    "checkpoint.keep_last": "keep checkpoint_hist save_total_limit save_top_k",
    "log.every_steps": "log_interval print_freq log_every log_freq log_steps logging_steps "
    "log_every_n_steps disp_freq",
    "log.tensorboard": "tensorboard tb use_tensorboard",
    "log.progress": "progress progress_bar quiet verbose",
    "performance.compile": "compile torchcompile torch_compile",
    "performance.recompute": "gradient_checkpointing activation_checkpointing grad_checkpointing "
    "checkpointing",
    "performance.compile_mode": "compile_mode torchcompile_mode",
    "performance.cuda_graph": "cuda_graph cuda_graphs cudagraph",
    "profile.steps": "profile profiler profile_steps",
    "performance.deterministic": "deterministic use_deterministic_algorithms",
    "performance.num_threads": "num_threads threads omp_num_threads",
    "dist.device": "device cuda cpu no_cuda accelerator",
    "dist.timeout_s": "timeout nccl_timeout dist_timeout",
    "dist.bucket_cap_mb": "bucket_cap bucket_size",
    "dist.gradient_dtype": "grad_dtype fp16_allreduce comm_hook",
}
"""Key -> what others call it."""

TELLS = {
    "gpus num_gpus ngpus gpu nproc nproc_per_node nprocs world_size devices num_processes np "
    "multiprocessing_distributed": "`resnet-dist train` starts one process per GPU, or as many as "
    "`--nproc N` says",
    "nodes nnodes num_nodes": "the launcher starts the nodes: `torchrun --nnodes N ...`, or "
    "`python -m launch.submit --nodes N`",
    "local_rank rank dist_url dist_backend master_addr master_port rdzv_endpoint "
    "init_method": "the launcher gives it to every process in the environment: leave it out",
    "dropout drop drop_rate": "these networks have no dropout; model.stochastic_depth leaves out "
    "whole blocks",
    "pin_memory pin_mem persistent_workers": "the loaders decide it themselves: leave it out",
    "config cfg": "give files as --config FILE",
    "help h": "--help KEY explains one setting",
    "wandb mlflow trackio": "training writes TensorBoard and metrics.jsonl; afterwards "
    "`resnet-dist report RUN --export wandb` (mlflow, trackio, csv)",
}
"""Words that no key stands for -> what to do instead."""

VALUES = {
    "fp16": "float16",
    "half": "float16",
    "bf16": "bfloat16",
    "fp32": "float32",
    "full": "float32",
    "ce": "cross_entropy",
    "bce": "binary_cross_entropy",
    "poly": "polynomial",
    "onecycle": "one_cycle",
    "multistep": "step",
}
"""The same for values of settings with a fixed set of them."""

_KEY_OF = {word: key for key, words in KEYS.items() for word in words.split()}
_TELL_OF = {word: tell for words, tell in TELLS.items() for word in words.split()}


def key_of(name: str) -> str | None:
    """The key that is meant by a word or by the last part of an unknown key."""
    return _KEY_OF.get(_last_part(name))


def answer_to(name: str) -> str | None:
    """The remedy for an unknown key, if its last part is a known word."""
    word = _last_part(name)
    if word in _TELL_OF:
        return _TELL_OF[word]
    return f"did you mean {_KEY_OF[word]}?" if word in _KEY_OF else None


def _last_part(name: str) -> str:
    return name.rpartition(".")[2].lower().lstrip("-").replace("-", "_")
