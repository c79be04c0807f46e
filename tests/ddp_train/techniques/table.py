"""Every technique in one table. Each row passes every check in test_table.py, or says why one does not apply."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """One technique.

    options   the command line that switches it on
    base      what its runs have in common with the run without it
    neutral   a command line under which it is on and changes nothing, None where there is none (`no_neutral` says why)
    ranks     None where two ranks must equal one; else the reason why the method does not allow that
    oracle    module:test that compares it with an independent implementation
    silent    it looks and must change nothing: on equals absent, bit for bit
    """

    name: str
    options: str
    oracle: str
    base: str = ""
    neutral: str | None = None
    no_neutral: str | None = None
    ranks: str | None = None
    network: str = ""
    """A model of its own, in place of the tiny ones."""
    silent: bool = False

    @property
    def on(self) -> str:
        """The command line of its runs."""
        return f"{self.base} {self.options}".strip()


def schedule(name: str, oracle: str, options: str = "") -> Row:
    """A scheduler. Neutral is a run on which it does not act: one without a second step after warm-up."""
    return Row(
        name=f"scheduler {name}",
        options=f"--scheduler {name} {options}",
        oracle=f"tests.ddp_train.optim.test_lr_schedule:{oracle}",
        no_neutral="a scheduler takes the place of another; none is the absence of all",
    )


def silent(name: str, options: str, oracle: str, base: str = "", network: str = "") -> Row:
    """Something that looks at a run and leaves it as it is."""
    return Row(
        name=name,
        base=base,
        options=options,
        oracle=oracle,
        no_neutral="it changes nothing when it is on",
        network=network,
        silent=True,
    )


def optimizer(name: str, oracle: str, options: str) -> Row:
    """An optimizer in place of sgd."""
    return Row(
        name=name,
        options=options,
        oracle=f"tests.ddp_train.optim.test_optimizers:{oracle}",
        no_neutral="an optimizer takes the place of another; none is the absence of all",
    )


def augmentation(name: str, options: str, oracle: str, *, neutral: str, base: str = "") -> Row:
    """An operation on single samples. The synthetic images of these runs have no augmentation of their own."""
    oracle = f"tests.ddp_train.data.augment.test_operations:{oracle}"
    return Row(name=name, options=options, oracle=oracle, base=base, neutral=neutral)


def policy(name: str, neutral: str | None = None) -> Row:
    """A policy of operations."""
    return Row(
        name=name,
        options=f"--augment-policy {name}",
        oracle="tests.ddp_train.data.augment.test_policies:test_samples_are_torchvisions",
        neutral=neutral,
        no_neutral=None if neutral else "its table has no setting that changes nothing",
    )


TABLE: tuple[Row, ...] = (
    schedule("step", "test_step_is_torchs", "--step-size 1"),
    schedule("multistep", "test_multistep_is_torchs"),
    schedule("exponential", "test_exponential_is_torchs"),
    schedule("warm_restarts", "test_warm_restarts_are_torchs"),
    schedule("onecycle", "test_onecycle_is_torchs"),
    schedule("linear", "test_linear_is_torchs"),
    schedule("triangular", "test_triangular_is_two_lines"),
    schedule("constant", "test_constant"),
    Row(
        name="plateau",
        base="--epochs 4 --lr 0.3",
        options="--scheduler plateau --patience 0 --gamma 0.01",
        neutral=None,
        no_neutral="a scheduler takes the place of another; none is the absence of all",
        oracle="tests.ddp_train.optim.test_lr_schedule:test_plateau_is_torchs",
    ),
    Row(
        name="warmup",
        base="--warmup-epochs 0",
        options="--warmup-epochs 1",
        neutral="--warmup-epochs 0",
        oracle="tests.ddp_train.optim.test_lr_schedule:test_warm_up_rises_evenly_to_the_peak_and_no_step_is_wasted",
    ),
    Row(
        name="warmup_start",
        base="--warmup-epochs 1",
        options="--warmup-start 0.5",
        no_neutral="any start takes the place of the even steps",
        oracle="tests.ddp_train.optim.test_lr_schedule:test_warm_up_from_a_share_of_the_peak_is_torchs",
    ),
    Row(
        name="early_stopping",
        base="--epochs 4",
        options="--early-stopping 1 --min-delta 1",
        neutral="--early-stopping 100",
        oracle="tests.ddp_train.optim.test_lr_schedule:test_early_stopping_counts_epochs_without_a_better_accuracy",
    ),
    Row(
        name="stochastic_depth",
        options="--stochastic-depth 0.5",
        neutral="--stochastic-depth 0",
        oracle="tests.ddp_train.techniques.test_stochastic_depth:test_dropping_is_torchvisions",
        ranks="drawn as dropout is, from the seed of the step and the shard: each rank draws for its own samples",
    ),
    Row(
        name="dropout",
        options="--dropout 0.5",
        neutral="--dropout 0",
        oracle="tests.ddp_train.models.test_models:test_dropout_is_the_models_own_or_what_is_asked_for",
        ranks="each rank draws for its own samples, from the seed of the step",
        network="small",
    ),
    Row(
        name="bf16",
        options="--amp bf16",
        neutral="--amp off",
        oracle="tests.ddp_train.engine.test_step_parts:test_precision_off_and_bf16",
        ranks="a sum over half of the samples is rounded to eight bits elsewhere than one over all",
    ),
    Row(
        name="chunked attention",
        base="--hidden-dim 16 --n-layers 1 --n-heads 2 --optimizer sgd",  # adam follows the rounding of gradients of 0
        options="--attention chunked",
        neutral="--attention sdpa",
        oracle="tests.ddp_train.models.test_model_families:test_chunked_attention_agrees_with_torchs_kernel",
        network="vit",
    ),
    silent(
        "checkpoint_activations",
        "--checkpoint-activations",
        "tests.ddp_train.techniques.test_checkpointing:test_everything_is_as_without_it",
    ),
    Row(
        name="whiten_bias",
        base="--width-mult 0.05 --sync-batch-norm",
        options="--whiten-bias-epochs 1",
        neutral="--whiten-bias-epochs 2",
        oracle="tests.ddp_train.techniques.test_whiten_bias:test_a_run_is_one_whose_bias_is_frozen_by_hand",
        network="speedrun",
    ),
    Row(
        name="whiten_bias, lookahead and ema",
        base="--width-mult 0.05 --sync-batch-norm",
        options="--whiten-bias-epochs 1 --lookahead 3 --ema 0.8 --clip-grad 1",
        no_neutral="its parts have theirs",
        oracle="tests.ddp_train.techniques.test_whiten_bias:test_a_run_is_one_whose_bias_is_frozen_by_hand",
        network="speedrun",
    ),
    Row(
        name="hard_samples",
        options="--hard-samples 0.5",
        neutral="--hard-samples 1",
        oracle="tests.ddp_train.techniques.test_hard_samples:test_a_run_is_plain_torch_on_the_largest_losses",
    ),
    Row(
        name="hard_samples and accumulate",
        base="--accumulate 3",
        options="--hard-samples 0.4",
        no_neutral="its parts have theirs",
        oracle="tests.ddp_train.techniques.test_hard_samples:test_a_run_is_plain_torch_on_the_largest_losses",
    ),
    # On one rank there is nothing to join; on two it is what makes them equal one.
    silent(
        "sync_batch_norm",
        "--sync-batch-norm",
        "tests.integration.test_exact_gradients:test_any_split_gives_the_gradient_of_the_global_batch",
        network="tests.ddp_train.techniques.tiny:normed",
    ),
    silent(
        "memory_report",
        "--memory-report",
        "tests.ddp_train.diagnostics.test_memory_report:test_what_is_kept_is_what_autograd_needs",
    ),
    silent(
        "gradient_flow",
        "--gradient-flow --log-every 3",
        "tests.ddp_train.diagnostics.test_gradient_flow:test_the_numbers_are_those_of_the_gradient",
    ),
    silent(
        "watch_numbers",
        "--watch-numbers --accumulate 2",
        "tests.ddp_train.diagnostics.test_watch_numbers:test_the_first_bad_layer_is_named",
        base="--accumulate 2",
    ),
    silent(
        "heartbeat",
        "--step-timeout 300",
        "tests.ddp_train.distributed.test_heartbeat:test_steps_of_a_watched_pipeline",
        base="--step-timeout 0",
    ),
    silent(
        "initial_loss_check",
        "--initial-loss-check",
        "tests.ddp_train.diagnostics.test_initial_loss:test_an_untrained_network_stands_at_ln_classes",
        base="--no-initial-loss-check",
    ),
    silent(
        "memory_growth_check",
        "--memory-growth-check",
        "tests.ddp_train.diagnostics.test_memory_growth:test_even_growth_is_found",
        base="--no-memory-growth-check",
    ),
    silent(
        "gpu_usage",
        "--device auto",
        "tests.ddp_train.diagnostics.test_gpu_usage:test_the_figures_are_the_drivers",
        base="--device cpu",
    ),
    silent(
        "profile",
        "--profile",
        "tests.ddp_train.diagnostics.test_profiling:test_calls_and_times_are_those_of_the_steps",
    ),
    silent(
        "histograms",
        "--tensorboard --histograms",
        "tests.ddp_train.diagnostics.test_histograms:test_the_histograms_are_numpys",
    ),
    Row(
        name="centralize_gradients",
        options="--centralize-gradients",
        neutral="--no-centralize-gradients",
        oracle="tests.ddp_train.engine.test_step_parts:test_centralisation_is_the_formula",
    ),
    Row(
        name="clip_grad",
        options="--clip-grad 0.05",
        neutral="--clip-grad 1e9",
        oracle="tests.ddp_train.engine.test_step_parts:test_clipping_is_torchs",
    ),
    optimizer("momentum", "test_the_factory_makes_torchs_optimizers", "--momentum 0.5"),
    optimizer("adam", "test_the_factory_makes_torchs_optimizers", "--optimizer adam --lr 0.001"),
    optimizer("adamw", "test_the_factory_makes_torchs_optimizers", "--optimizer adamw --lr 0.001"),
    optimizer("amsgrad", "test_the_factory_makes_torchs_optimizers", "--optimizer adamw --amsgrad --lr 0.001"),
    optimizer("muon", "test_muon_on_matrices_is_torchs", "--optimizer muon"),
    optimizer("muon, normalized", "test_muon_on_kernels_is_the_formula", "--optimizer muon --muon-normalize"),
    optimizer("muon with sgd", "test_muon_on_kernels_is_the_formula", "--optimizer muon --muon-rest sgd"),
    Row(
        name="sam",
        options="--sam 0.1",
        neutral="--sam 0",
        ranks="each rank climbs along the gradient of its own part (m-sharpness); test_weights.py has the formula",
        oracle="tests.ddp_train.techniques.test_weights:test_sam_is_the_formula",
    ),
    Row(
        name="lookahead",
        options="--lookahead 3",
        neutral="--lookahead 1 --lookahead-alpha 1",
        oracle="tests.ddp_train.techniques.test_weights:test_lookahead_is_the_formula",
    ),
    Row(
        name="ema",
        options="--ema 0.8 --ema-warmup",
        neutral="--ema 0",
        oracle="tests.ddp_train.techniques.test_weights:test_ema_is_torchs",
    ),
    Row(
        name="swa",
        base="--epochs 3",
        options="--swa 1 --swa-anneal 0.5",
        neutral="--swa 100",
        oracle="tests.ddp_train.techniques.test_weights:test_swa_is_torchs",
    ),
    Row(
        name="sam, ema and accumulate",
        base="--accumulate 2",
        options="--sam 0.1 --ema 0.8 --clip-grad 1",
        no_neutral="its parts have theirs",
        ranks="each rank climbs along the gradient of its own part",
        oracle="tests.ddp_train.techniques.test_weights:test_sam_is_the_formula",
    ),
    Row(
        name="muon, lookahead, ema, mixup and accumulate",
        options="--optimizer muon --lookahead 3 --ema 0.8 --mixup 1 --accumulate 2",
        no_neutral="its parts have theirs",
        ranks="mixup pairs images within a rank",
        oracle="tests.ddp_train.optim.test_optimizers:test_muon_on_kernels_is_the_formula",
    ),
    Row(
        name="weight_decay",
        base="--weight-decay 0",
        options="--weight-decay 0.1",
        neutral="--weight-decay 0",
        oracle="tests.ddp_train.optim.test_optimizers:test_biases_and_norms_do_not_decay",
    ),
    Row(
        name="label_smoothing",
        options="--label-smoothing 0.2",
        neutral="--label-smoothing 0",
        oracle="tests.ddp_train.engine.test_step_parts:test_the_loss_is_a_sum_over_samples",
    ),
    Row(
        name="class_weights",
        options="--class-weights tests/ddp_train/techniques/class_weights.yaml",
        neutral="--class-weights balanced",  # the synthetic classes are equally large
        oracle="tests.ddp_train.data.test_imbalance:test_a_run_is_plain_torch_with_a_weighted_loss",
    ),
    Row(
        name="class_weights, mixup and accumulate",
        base="--accumulate 2",
        options="--class-weights tests/ddp_train/techniques/class_weights.yaml --mixup 1",
        no_neutral="its parts have theirs",
        oracle="tests.ddp_train.techniques.test_mixing:test_class_weights_of_mixed_targets",
    ),
    Row(
        name="balanced_sampling",
        base="--augment balanced",
        options="--balanced-sampling",
        no_neutral="it takes the place of the plain order, also where the classes are equally large",
        oracle="tests.ddp_train.data.test_imbalance:test_a_balanced_epoch_has_each_class_equally_often_and_its_images_in_turn",
    ),
    Row(
        name="accumulate",
        options="--accumulate 3",
        neutral="--accumulate 1",
        oracle="tests.integration.test_exact_gradients:test_any_split_gives_the_gradient_of_the_global_batch",
    ),
    *(
        Row(
            name=f"augment {level}",
            base="--augment none",
            options=f"--augment {level}",
            neutral="--augment none",
            oracle="tests.ddp_train.data.test_augment:test_equals_the_oracle",
        )
        for level in ("balanced", "heavy")
    ),
    augmentation(
        "flip",
        "--flip alternating",
        "test_an_alternating_flip_shows_each_side_every_other_epoch",
        base="--augment minimal",
        neutral="--flip random",
    ),
    # Shifts of up to four pixels of 32, which is the level's own.
    augmentation(
        "crop_padding",
        "--crop-padding 2",
        "test_crops_are_of_images_widened_by_so_many_pixels",
        base="--augment balanced",
        neutral="--crop-padding 4",
    ),
    augmentation(
        "random_resized_crop",
        "--random-resized-crop 0.2",
        "test_resized_crop_is_torchvisions",
        base="--augment minimal",
        neutral="--random-resized-crop 1",
    ),
    augmentation("rotation", "--rotation 20", "test_rotation_is_torchvisions", neutral="--rotation 0"),
    augmentation(
        "color_jitter", "--color-jitter 0.4", "test_colour_jitter_is_torchvisions", neutral="--color-jitter 0"
    ),
    augmentation("grayscale", "--grayscale 0.5", "test_grayscale_has_its_probability", neutral="--grayscale 0"),
    # With seed 0 one activation lies on ReLU's kink, and the last bit of a sum decides.
    augmentation("erasing", "--erasing 0.5", "test_erasing_at_any_level", base="--seed 1", neutral="--erasing 0"),
    augmentation("cutout", "--cutout 12", "test_cutout_is_a_square_inside_every_image", neutral="--cutout 0"),
    policy("autoaugment"),
    policy("randaugment", neutral="--augment-policy randaugment --randaugment-ops 0"),
    policy("trivialaugment"),
    Row(
        name="progressive_resize",
        options="--progressive-resize 16",
        neutral="--progressive-resize 32",
        oracle="tests.ddp_train.techniques.test_progressive_resize:test_images_are_pillows",
        network="tests.ddp_train.techniques.tiny:pooled",
    ),
    Row(
        name="mixing",
        options="--mixup 0.5 --cutmix 1",
        neutral="--mixup 0.5 --cutmix 1 --mixup-prob 0",
        oracle="tests.ddp_train.techniques.test_mixing:test_both_together_draw_one_a_step",
    ),
    Row(
        name="mixup",
        options="--mixup 0.5 --mixup-prob 0.7",
        neutral="--mixup 0",
        oracle="tests.ddp_train.techniques.test_mixing:test_mixup_is_torchvisions",
    ),
    Row(
        name="cutmix",
        options="--cutmix 1",
        neutral="--cutmix 0",
        oracle="tests.ddp_train.techniques.test_mixing:test_cutmix_is_torchvisions",
    ),
    Row(
        name="own technique",
        options="--technique tests.ddp_train.techniques.own:noise",
        neutral="--technique tests.ddp_train.techniques.own:silence",
        oracle="tests.ddp_train.techniques.test_table:test_a_technique_of_the_users_own_takes_part",
    ),
)


ELSEWHERE: dict[str, str] = {
    "Cosine": "the default: every other row trains with it",
    "SGD": "the default: every other row trains with it",
    "By global batch": "chooses one of the schedules that have rows: tests/ddp_train/config/test_recommend.py",
    "Range test": "takes the place of training: tests/ddp_train/tune/test_learning_rate.py",
    "Gradient penalty": "a function, against its formula: tests/ddp_train/engine/test_step_parts.py",
    "TF32": "a format of GPUs: tests/gpu/test_on_gpu.py",
    "Comparison of formats": "a command, no part of training: tests/ddp_train/optim/test_precision.py",
    "Reproducible": "every row that acts is trained under it: test_two_ranks_give_the_bits_of_one_where_they_are_to",
    "Channels-last": "a layout, the default: other kernels round otherwise, and nothing else differs",
    "Kernels by time": "of a GPU: tests/ghost/test_faults.py",
    "Compilation": "needs a compiler: tests/integration/test_compile.py",
    "Expandable segments": "an option of CUDA's allocator: tests/ddp_train/test_process_setup.py",
    "Memory between trials": "a function: tests/ddp_train/tune/test_preserve.py",
    "Evaluation": "a command, behind training: tests/ddp_train/evaluation/test_commands.py",
    "Examination": "behind training: tests/ddp_train/engine/test_evaluate.py",
    "Hooks": "a function: tests/ddp_train/diagnostics/test_hooks.py",
    "Overfitting one batch": "takes the place of training: tests/ddp_train/tune/test_overfit_one_batch.py",
    "Test-time augmentation": "of evaluation: tests/ddp_train/engine/test_evaluate.py",
    "Weights & Biases": "a record: tests/ddp_train/observers/test_wandb.py",
}
"""Cards of docs/techniques.md without a row, and why. The models' cards have the tests of models."""
