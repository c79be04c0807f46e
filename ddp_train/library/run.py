"""`Run`: the bundled trainer's guarantees for a user's own training loop. docs/library.md is the guide.

    with Run(out_dir="runs/mine", seed=0) as run:
        net = run.model(Net())
        optimizer = torch.optim.AdamW(net.parameters())
        loader = run.loader(dataset, batch_size=256)
        run.keep(net=net, optimizer=optimizer)
        for epoch in run.epochs(10):
            for images, labels in loader:
                run.backward(F.cross_entropy(net(images), labels, reduction="sum"))
                run.step(optimizer)

The work is done by the trainer's own parts: engine/loop.py (epochs, steps, flags), checkpoint/manager.py, observers/.
Here they are combined for the user's networks and data: setup.py prepares the process, steps.py has the loop's steps.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from ddp_core.errors import UserError
from ddp_train.checkpoint.manager import Saver
from ddp_train.checkpoint.progress import Advice, Progress
from ddp_train.config.validation import read_interval
from ddp_train.distributed.heartbeat import heartbeat
from ddp_train.distributed.process_group import (
    on_first_rank,
    take_first_ranks,
    together,
)
from ddp_train.engine.oom_retry import is_out_of_memory
from ddp_train.library import numbers, records
from ddp_train.library.keep import Kept, KeptState
from ddp_train.library.loader import Loader
from ddp_train.library.make_loader import create
from ddp_train.library.model import Joined, join, unwrapped
from ddp_train.library.order import Order, Ordering
from ddp_train.library.reading import Collate
from ddp_train.library.setup import Process
from ddp_train.library.training import Training, Turns, halve_micro_batches, read_halved
from ddp_train.library.use import Used
from ddp_train.run_folder.files import RunFolder

_REMEDY = "try a lower learning rate, or run.use(clip_grad=1.0)"


class Run:
    """One run of a user's own loop, on this rank; a context manager, entered on all ranks alike.

    out_dir       the run's folder; None: a new one under runs/
    seed          for the initial weights, the order of the samples and every keyed draw
    resume        "auto": an unfinished run in the folder is continued; None: it is moved aside; else a checkpoint
    device        "auto", "cpu" or "cuda"
    save_every    a checkpoint every so many steps (500) or so much time ("90s", "5m"), and after each epoch
    log_every     steps between two progress reports
    step_timeout  seconds without progress after which a rank counts as hung; None: automatic, 0: never
    tensorboard   write TensorBoard event files into the folder
    wandb         the project in Weights & Biases; None: not used

    Under torchrun it reads torchrun's variables; alone it is one rank. Errors in the `with` block end the process as in
    the trainer: a user's mistake with one line and status 2, a signal with a checkpoint and status 143.
    """

    def __init__(
        self,
        out_dir: str | Path | None = None,
        *,
        seed: int = 0,
        resume: str | Path | None = "auto",
        device: str = "auto",
        save_every: int | str = "5m",
        log_every: int = 20,
        step_timeout: float | None = None,
        tensorboard: bool = False,
        wandb: str | None = None,
    ) -> None:
        self._process = Process(out_dir, resume, device, step_timeout)
        self.seed, self._save_every, self._log_every = seed, save_every, log_every
        self._tensorboard, self._wandb = tensorboard, wandb
        self._networks: list[nn.Module] = []
        self._joined: list[Joined] = self._process.joined
        self._loaders: list[Loader] = []
        self._columns: dict[str, float] = {}
        self._training: Training | None = None
        self._kept_something = self._complete = False

    # The block.

    def __enter__(self) -> Run:
        with self._process.failing():
            self._start()
        return self

    def _start(self) -> None:
        process = self._process
        interval = read_interval(str(self._save_every), "Run(save_every=...):")
        process.start(self.seed)
        self.ranks, self.device, self.folder = process.ranks, process.device, process.folder
        files = RunFolder(self.folder)
        self._used = Used(self.device)
        self._contents = KeptState(self.seed, self._places)
        self.progress = Progress()
        self._advice = Advice(
            "the same command", remedy=_REMEDY, saved="the same command continues from there", option="resume"
        )
        identity = {"library": 1, "seed": self.seed, "world_size": self.ranks.world_size}
        flags = process.flag_exchange
        self._saver = Saver(
            self._contents,
            identity,
            interval,
            self.ranks,
            self.device,
            flags,
            files.latest,
            files.best_model,
            self._advice,
        )
        self._notes: tuple[str, ...] = process.notes
        self._source = process.source
        self._halved: list[int] = on_first_rank(lambda: read_halved(self.folder), self.ranks)
        if self._halved:
            self._notes = (*self._notes, f"memory ran out before: accumulate={max(self._halved)}")
        if self._source is not None:
            source = self._source
            self.progress, notes = together(lambda: self._saver.restore(source), self.ranks)
            self._notes = (*self._notes, *notes)
            assert self._contents.saved is not None
            self._used.saved = self._contents.saved["places"].get("used")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            if self._training is not None:
                with self._process.failing():
                    self._training.finish(complete=self._complete)
        elif self._training is not None and isinstance(error, Exception) and is_out_of_memory(error, self.device):
            halve_micro_batches(self, error)
        self._process.close(error)

    # What the loop is made of.

    @property
    def rank(self) -> int:
        """This process's number among the run's."""
        return self.ranks.rank

    @property
    def world_size(self) -> int:
        """How many processes the run has."""
        return self.ranks.world_size

    @property
    def is_first(self) -> bool:
        """Whether this is rank 0, which writes files and prints for the user."""
        return self.ranks.is_first

    @property
    def step_number(self) -> int:
        """Optimizer steps of the run so far."""
        return self.progress.step

    @property
    def samples(self) -> int:
        """How many own samples this rank has in the current batch; 0 where it only takes part in the step."""
        part = None if self._training is None else self._training.steps.part
        return 1 if part is None else part.samples

    def _samples_in_hand(self) -> tuple[int, int]:
        return (1, 1) if self._training is None else self._training.steps.samples()

    def model(self, network: nn.Module, **options: Any) -> Any:
        """`network` on this rank's device, with rank 0's weights, and on several ranks joined with the others'.

        options: of DistributedDataParallel, such as find_unused_parameters=True where not every parameter gets a
        gradient in each step. Errors: UserError.
        """
        self._before_epochs("run.model()")
        if not isinstance(network, nn.Module):
            raise UserError(f"run.model() takes a torch.nn.Module, not a {type(network).__name__}")
        network.to(self.device)
        take_first_ranks(network, self.ranks)
        self._networks.append(unwrapped(network))
        together(lambda: self._used.average(unwrapped(network)), self.ranks)
        network = self._used.changed(network)
        if self.world_size == 1 or not any(p.requires_grad for p in network.parameters()):
            return network
        joined = join(network, self.ranks, self.device, self._samples_in_hand, options)
        self._joined.append(joined)
        return joined

    def loader(
        self,
        dataset: Any,
        batch_size: int,
        *,
        shuffle: bool = True,
        drop_last: bool = False,
        sampler: Order | None = None,
        collate_fn: Collate | None = None,
        accumulate: int = 1,
        num_workers: int = 0,
        **options: Any,
    ) -> Loader:
        """This rank's part of each GLOBAL batch of `batch_size` samples; the same batches on any number of ranks.

        dataset     map-style (`len` and `[]`), or iterable with state_dict and load_state_dict
        sampler     a function of the epoch (from 0) that returns the indices of its samples, in place of a shuffle
        accumulate  micro-batches of a step: the loop's body runs for each, and the optimizer steps in the last
        options     of torch.utils.data.DataLoader for num_workers above 0: pin_memory, prefetch_factor ...

        A rank without samples of a batch gets an empty one (see Run.samples). Errors: UserError.
        """
        self._before_epochs("run.loader()")
        halved = self._halved[len(self._loaders) :]
        if halved and isinstance(accumulate, int) and isinstance(batch_size, int):
            accumulate = max(accumulate, min(halved[0], batch_size))  # batch_size may be smaller than it was
        place, order = Turns(self), Ordering(self.seed, shuffle, drop_last, sampler)
        loader = create(place, dataset, batch_size, order, self.ranks, collate_fn, accumulate, num_workers, options)
        return self._added(loader)

    def _added(self, loader: Loader) -> Loader:
        loader.begin_epoch(self.progress.epoch)
        if self._contents.saved is not None:
            places, within = self._contents.saved["places"]["loaders"], self.progress.step_in_epoch > 0
            if len(self._loaders) < len(places):
                place = places[len(self._loaders)]
                together(lambda: loader.load_state_dict(place, within=within), self.ranks)
        self._loaders.append(loader)
        return loader

    def _places(self) -> dict[str, Any]:
        return {"loaders": [loader.state_dict() for loader in self._loaders], "used": self._used.state_dict()}

    def use(self, **options: Any) -> None:
        """Use techniques of the trainer in this loop; call it before run.model().

        clip_grad  the largest norm of an optimizer's gradient
        ema        the decay of an average of the weights, see `averaged`
        sam        the radius of sharpness-aware minimisation: run.step(optimizer, closure)
        amp        "bf16" or "fp16" (with a loss scale) inside run.autocast()
        compile    compile the networks with torch.compile

        Errors: UserError that names the option.
        """
        self._before_epochs("run.use()")
        if self._networks and set(options) - {"clip_grad", "amp"}:
            raise UserError("run.use() comes before run.model(): it changes what run.model() makes")
        together(lambda: self._used.add(options), self.ranks)

    def averaged(self, network: nn.Module) -> nn.Module:
        """The network with averaged weights, after run.use(ema=...): to evaluate, and for run.best()."""
        found = self._used.averages.get(id(unwrapped(network)))
        if found is None:
            raise UserError("run.averaged(): this network has no average: run.use(ema=0.999) before run.model()")
        return found

    def keep(self, **things: Any) -> Kept:
        """Keep these in checkpoints: whatever has state_dict and load_state_dict, tensors, generators, plain values.

        A resumed run restores all of them; plain values are attributes of what is returned. Errors: UserError that
        names what cannot be kept, or does not fit.
        """
        self._before_epochs("run.keep()")
        together(lambda: self._contents.add(things), self.ranks)
        self._kept_something = True
        return self._contents.kept

    # The loop.

    def epochs(self, count: int) -> Iterator[int]:
        """The epochs that are left of `count`, from 0. After each: the record, and a checkpoint. Errors: Stopped."""
        if self._training is not None:
            raise UserError("run.epochs() is called once in a run")
        if self._kept_something and (left := self._contents.left_over()):
            raise UserError(
                f"the checkpoint in {self.folder} holds {', '.join(left)}, which run.keep() was not given: it would be "
                "lost; keep it, or start afresh in another out_dir or with Run(resume=None)"
            )
        if self.progress.epoch >= count or self.progress.stopped:
            self._complete = True
            more = "for more, run.epochs() with more"
            if self.progress.stopped:
                more = "the loop was left there; Run(resume=None) starts afresh"
            self._say(f"{self.folder} is finished: epoch {self.progress.epoch}; {more}")
            return
        training = self._training = Training(self, count)
        for epoch in training.loop.epochs(count, training.settle):
            for loader in self._loaders:
                loader.begin_epoch(epoch)
            heartbeat.at(epoch, self.progress.step)
            heartbeat.beat("training")
            yield epoch
            training.end_epoch(epoch)
        self._complete = True

    def backward(
        self, loss: Tensor, *, mean: bool = False, retain_graph: bool = False, of: Loader | None = None
    ) -> None:
        """Add the gradient of the global batch's mean loss to `.grad`, whatever the split over ranks.

        loss: one number, the SUM of the losses of this rank's part of the batch, or with `mean` their mean. May be
        called for several losses of a batch. of: the loader of that batch, where several are looped over at once.
        Errors: UserError.
        """
        self._running("run.backward()").steps.backward(loss, mean=mean, retain_graph=retain_graph, of=of)

    def step(self, optimizer: torch.optim.Optimizer, closure: Callable[[], object] | None = None) -> bool:
        """Take the optimizer's step, if all ranks' losses and gradients are finite, and clear its gradients.

        Returns False without a step in a micro-batch that is not the step's last: `if run.step(optimizer):
        schedule.step()`. May be called for several optimizers. closure: computes the losses and calls run.backward(),
        as often as the step needs the gradient (run.use(sam=...)). Errors: UserError; TrainingDiverged on all ranks.
        """
        return self._running("run.step()").steps.step(optimizer, closure)

    def _running(self, what: str) -> Training:
        if self._training is None:
            raise UserError(f"{what} belongs into a loop over run.epochs(...)")
        return self._training

    def _inside(self, what: str) -> None:
        if not self._process.started:
            raise UserError(f"{what} outside the block: with Run(...) as run: ...")

    def _before_epochs(self, what: str) -> None:
        self._inside(what)
        if self._training is not None:
            raise UserError(f"{what} comes before run.epochs(...)")

    # Numbers.

    def sum(self, value: Any) -> Any:
        """The sum over all ranks, added up in rank order: a number for a number, a tensor for a tensor."""
        self._inside("run.sum()")
        return numbers.total(value, self._process)

    def mean(self, total: Any, count: Any = None) -> float:
        """The sum of all ranks' totals over that of their counts; without counts, the mean of all ranks' elements."""
        self._inside("run.mean()")
        return numbers.mean(total, count, self._process)

    def gather(self, value: Any) -> Any:
        """Every rank's `value`, in rank order: tensors joined along their first dimension; else a list by rank."""
        self._inside("run.gather()")
        return numbers.gathered(value, self._process)

    def log(self, **columns: Any) -> None:
        """Put numbers into the epoch's record: history, console, TensorBoard, Weights & Biases. Rank 0's count."""
        for name, value in columns.items():
            self._columns[name] = records.number(name, value)

    def best(self, metric: Any, network: nn.Module, *, lowest: bool = False) -> bool:
        """Whether `metric` is the best of the run so far: then best_model.pth will have these weights.

        metric: the same on all ranks, as run.mean gives it; the highest counts, or the `lowest`. Once an epoch, outside
        of the loop over a loader. Errors: UserError.
        """
        return self._running("run.best()").best.offer(float(metric), unwrapped(network), lowest=lowest)

    def autocast(self) -> AbstractContextManager[Any]:
        """The region in which forward passes run in the precision of run.use(amp=...)."""
        return self._used.precision.autocast()

    def print(self, *words: object) -> None:
        """`print` on rank 0 alone."""
        if self.is_first:
            print(*words, flush=True)

    def _say(self, line: str) -> None:
        if self.is_first:
            print(line, file=sys.stderr, flush=True)
