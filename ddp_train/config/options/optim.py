"""Options of the optimizer and its gradients, of the learning-rate schedule, and of regularisation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ddp_train.config.declaration import Range, When, option

MUON = When("optimizer", "muon")
ADAM = When("optimizer", "adam", "adamw", others=(When("optimizer", "muon", also=When("muon_rest", "adamw")),))
SGD = When("optimizer", "sgd", others=(When("optimizer", "muon", also=When("muon_rest", "sgd")),))
"""Conditions under which the options of each optimizer have an effect."""


@dataclass(frozen=True, kw_only=True)
class OptimOptions:
    """Optimization"""

    optimizer: Literal["sgd", "adam", "adamw", "muon"] = option(
        "sgd",
        "sgd: with Nesterov momentum; muon: for hidden matrices and kernels, --muon-rest for the rest. Where none is "
        "given, transformers, convnext, alexnet and squeezenet get adamw.",
    )
    lr: float | None = option(
        None,
        "Peak learning rate, for muon that of its matrices (default: by optimizer, for global batch 128, scaled by "
        "--lr-scaling).",
        Range(0, 1e4, exclusive=True),
    )
    lr_scaling: Literal["sqrt", "linear", "none"] | None = option(
        None, "Scale the learning rate with global batch / 128 (default: sqrt; none when --lr is given)."
    )
    momentum: float = option(0.9, "Momentum of sgd.", Range(0, 0.9999), only_with=SGD)
    beta1: float = option(0.9, "adam, adamw: decay of the mean of the gradients.", Range(0, 0.99999), only_with=ADAM)
    beta2: float = option(
        0.999, "adam, adamw: decay of the mean of the squared gradients.", Range(0, 0.99999), only_with=ADAM
    )
    eps: float = option(1e-8, "adam, adamw: added to the denominator.", Range(0, 1), only_with=ADAM)
    amsgrad: bool = option(False, "adam, adamw: divide by the largest mean square so far.")
    muon_momentum: float = option(0.95, "muon: momentum of the matrices.", Range(0, 0.9999), only_with=MUON)
    muon_normalize: bool = option(
        False,
        "muon: scale each matrix to a fixed norm before its step, so that --lr is a share of the weights.",
        only_with=MUON,
    )
    muon_iterations: int = option(
        5, "muon: Newton-Schulz iterations (3 are faster and coarser).", Range(1, 20), only_with=MUON
    )
    muon_rest: Literal["sgd", "adamw"] = option(
        "adamw", "muon: optimizer of biases, norms, embeddings, and the first and last layer.", only_with=MUON
    )
    muon_rest_lr: float | None = option(
        None,
        "muon: peak learning rate of the other parameters, scaled as --lr is (default: by --muon-rest).",
        Range(0, 1e4, exclusive=True),
        only_with=MUON,
    )
    weight_decay: float = option(
        5e-4, "Weight decay, for weights only: not for biases and normalisation parameters.", Range(0, 10)
    )
    lr_by_layer: str | None = option(
        None,
        "Factors on the learning rate by parameter name, as in 'stem=0.1,blocks.0=0.3'; the last match counts "
        "(default: 1 for all).",
        excludes={When("optimizer", "muon"): "muon has rates of its own for matrices and the rest"},
    )
    sam: float | None = option(
        None,
        "Sharpness-aware minimisation: distance of the ascent before the gradient is computed (0.05 is usual).",
        Range(0, 100),
    )
    lookahead: int | None = option(
        None,
        "Lookahead: steps after which the slow weights move towards the trained ones (5 is usual).",
        Range(1, 10**6),
    )
    lookahead_alpha: float = option(
        0.5,
        "Lookahead: how far the slow weights move, as a fraction of the distance.",
        Range(0, 1, exclusive=True),
        only_with=When("lookahead"),
    )
    centralize_gradients: bool = option(False, "Subtract the mean from the gradient of each output of a weight.")
    clip_grad: float | None = option(
        None, "Largest norm of the gradient (default: no limit).", Range(0, 1e9, exclusive=True)
    )


@dataclass(frozen=True, kw_only=True)
class ScheduleOptions:
    """Learning-rate schedule"""

    scheduler: Literal[
        "step",
        "multistep",
        "exponential",
        "cosine",
        "warm_restarts",
        "onecycle",
        "plateau",
        "linear",
        "triangular",
        "constant",
        "auto",
    ] = option(
        "cosine",
        "Learning rate over the run; auto: by global batch (from 256 warm_restarts, from 128 cosine, below multistep).",
    )
    warmup_epochs: float = option(
        1.0,
        "Epochs of linear warm-up from near zero; not for onecycle and triangular, which have a rise of their own.",
        Range(0, 10**6),
    )
    warmup_start: float | None = option(
        None,
        "Share of the peak at the first step of warm-up (default: one even step above zero).",
        Range(0, 1),
        excludes={When("scheduler", "onecycle", "triangular"): "it has a rise of its own, without warm-up"},
    )
    eta_min: float = option(
        0.0,
        "Lowest learning rate of cosine, warm_restarts, linear, triangular and plateau.",
        Range(0, 1e4),
        only_with=When("scheduler", "cosine", "warm_restarts", "linear", "triangular", "plateau", "auto"),
    )
    step_size: int = option(30, "step: epochs between two drops.", Range(1, 10**6), only_with=When("scheduler", "step"))
    gamma: float | None = option(
        None,
        "Factor of a drop (default: 0.1); exponential: factor of each epoch (default: ends at 1% of the peak).",
        Range(0, 1, exclusive=True),
        only_with=When("scheduler", "step", "multistep", "exponential", "plateau", "auto"),
    )
    milestones: str = option(
        "0.6,0.8",
        "multistep: where the drops are, as shares of the run (from 1 on: epochs).",
        only_with=When("scheduler", "multistep", "auto"),
    )
    t_0: int | None = option(
        None,
        "warm_restarts: epochs of the first cycle (default: such that the last cycle ends with the run).",
        Range(1, 10**6),
        only_with=When("scheduler", "warm_restarts", "auto"),
    )
    t_mult: int = option(
        2,
        "warm_restarts: each cycle is this many times as long as the one before.",
        Range(1, 100),
        only_with=When("scheduler", "warm_restarts", "auto"),
    )
    pct_start: float = option(
        0.3,
        "onecycle, triangular: share of the run in which the rate rises.",
        Range(0, 0.99, exclusive=True),
        only_with=When("scheduler", "onecycle", "triangular"),
    )
    patience: int = option(
        10,
        "plateau: epochs without a lower test loss before a drop.",
        Range(0, 10**6),
        only_with=When("scheduler", "plateau"),
    )


@dataclass(frozen=True, kw_only=True)
class RegularizeOptions:
    """Regularisation"""

    label_smoothing: float = option(0.0, "Share of the target that is spread over the other classes.", Range(0, 0.99))
    class_weights: str | None = option(
        None,
        "Weights of the classes in the training loss. balanced: a class counts the less the more images it has; FILE: "
        "YAML or JSON, a line 'CLASS: WEIGHT' for each class (default: all images count alike).",
    )
    hard_samples: float | None = option(
        None,
        "Train on this share of each global batch alone, the samples that a small proxy network finds hardest (0.5 is "
        "usual; default: on all).",
        Range(0, 1, exclusive=True),
        excludes={When("class_weights"): "the weights would be added up over all samples, not the chosen ones"},
    )
    stochastic_depth: float | None = option(
        None,
        "Probability that a sample skips the last residual branch; lower for earlier branches, in proportion to depth.",
        Range(0, 0.99),
    )
    early_stopping: int | None = option(
        None, "Stop after this many epochs without a better test accuracy.", Range(1, 10**6)
    )
    min_delta: float = option(
        0.0,
        "Smallest increase of the accuracy (fraction of 1) that --early-stopping counts as better.",
        Range(0, 1),
        only_with=When("early_stopping"),
    )
    ema: float | None = option(
        None,
        "Evaluate an exponential moving average of the weights with this decay (0.999 is usual).",
        Range(0, 0.99999),
        excludes={When("swa"): "each evaluates an average of its own"},
    )
    ema_warmup: bool = option(
        False, "ema: a shorter average in the first steps, (1 + step) / (10 + step).", only_with=When("ema")
    )
    swa: float | None = option(
        None,
        "Stochastic weight averaging from this share of the run on (from 1 on: epoch); the mean is evaluated.",
        Range(0, 10**6),
    )
    swa_lr: float | None = option(
        None,
        "swa: learning rate while averaging (default: half of the peak).",
        Range(0, 1e4, exclusive=True),
        only_with=When("swa"),
    )
    swa_anneal: float = option(
        1.0, "swa: epochs over which the learning rate moves to --swa-lr.", Range(0, 10**6), only_with=When("swa")
    )
    technique: str | None = option(
        None, "A technique of your own: package.module:function; separate several by commas."
    )
