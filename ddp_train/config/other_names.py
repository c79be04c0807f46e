"""Names that other trainers use for an option, for the messages about options that are unknown here."""

from __future__ import annotations

# Our option -> the names in other trainers. A key that starts with a colon is advice on what to do here instead.
_THEIRS = {
    "accumulate": "gradient_accumulation_steps accumulate_grad_batches grad_accum accumulation_steps "
    "grad_accum_steps gradient_accumulation",
    "amp": "mixed_precision use_mixed_precision precision use_amp fp16 bf16 half",
    "augment_policy": "aa auto_augment autoaugment randaugment trivialaugment",
    "batch_size": "batch bs train_batch_size global_batch_size",
    "batch_size_per_rank": "per_device_train_batch_size micro_batch_size batch_size_per_gpu",
    "checkpoint_activations": "gradient_checkpointing activation_checkpointing grad_checkpointing",
    "clip_grad": "grad_clip gradient_clip_val gradient_clip gradient_clipping max_grad_norm grad_clip_norm",
    "compile": "torch_compile use_compile torchcompile",
    "data_dir": "data data_path train_dir root dataset_path dataset_dir",
    "device": "accelerator use_gpu cuda",
    "dropout": "drop drop_rate dropout_rate",
    "early_stopping": "early_stop early_stopping_patience es_patience",
    "ema": "ema_decay model_ema model_ema_decay use_ema",
    "epochs": "max_epoch num_epochs n_epochs num_train_epochs",
    "erasing": "reprob random_erasing",
    "eta_min": "min_lr lr_min final_lr",
    "image_size": "img_size input_size resolution imgsz crop_size",
    "label_smoothing": "smoothing ls",
    "log_every": "log_interval log_every_n_steps print_freq logging_steps",
    "lr": "base_lr init_lr initial_lr max_lr",
    "model": "arch architecture backbone network net model_name",
    "num_workers": "workers dataloader_num_workers n_workers",
    "normalize": "normalization normalisation norm_mean mean std image_mean image_std",
    "optimizer": "opt optim",
    "out_dir": "output output_dir save_dir log_dir logdir default_root_dir",
    "reproducible": "deterministic",
    "resize": "resize_size val_resize_size resize_shorter shorter_side",
    "resume": "resume_from_checkpoint ckpt_path checkpoint ckpt load_checkpoint",
    "save_every": "save_steps save_freq checkpoint_interval save_interval",
    "scheduler": "sched lr_scheduler lr_scheduler_type lr_schedule",
    "seed": "random_seed manual_seed seed_everything",
    "stochastic_depth": "drop_path drop_path_rate",
    "sync_batch_norm": "sync_bn sync_batchnorm",
    "val_split": "val_size val_ratio validation_split val_fraction valid_split validation_size",
    "wandb": "use_wandb report_to",
    "warmup_epochs": "warmup warmup_steps lr_warmup_epochs warmup_ratio",
    "weight_decay": "wd decay",
    "weights": "finetune init_from init_checkpoint load_weights pretrained_path",
    "weights imagenet": "pretrained pre_trained use_pretrained",
    "width_mult": "base_channels channels width width_multiplier widen_factor",
    ": the classes are those of the data": "num_classes n_classes nb_classes",
    ": the best epoch is that of the highest accuracy, on the validation split where there is one (--val-split)": (
        "monitor monitor_metric metric_for_best_model checkpoint_metric eval_metric"
    ),
    ": the launcher chooses the GPUs: launch.py --gpus LIST, or --nproc N": (
        "devices gpus num_gpus n_gpus ngpus nproc nproc_per_node num_devices"
    ),
    ": the launcher joins nodes: launch.py --nnodes N": "nnodes num_nodes",
    ": launch.py starts one process for each GPU": "strategy distributed ddp",
}
MEANT = {name: ours for ours, names in _THEIRS.items() for name in names.split()}
"""Name in another trainer -> our option, or advice that starts with a colon."""
