"""The energy of epochs, on ghost GPUs with counters of a stand-in driver."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from tests.fake_nvml.machine import load_machine
from tests.ghost.conftest import ROOT, GhostMachine

COSTS = """
import json, time, torch
from ddp_train.diagnostics.epoch_costs import EpochCosts
from ddp_train.distributed.flag_exchange import FlagExchange
from ddp_train.distributed.process_group import Ranks
from ddp_train.observers.records import EpochRecord, History

def record(epoch):
    numbers = dict.fromkeys(("train_loss", "train_accuracy", "loss", "accuracy", "learning_rate", "seconds"), 1.0)
    return EpochRecord(epoch=epoch, images_per_second=1.0, global_batch=1, extra={"gpu_memory": 1.0}, **numbers)

history = History("history.json", {})
costs = EpochCosts(Ranks(), torch.device("cuda", 0), FlagExchange())
costs.begin(within_an_epoch=True)
for epoch in (1, 2, 3):
    time.sleep(0.1)
    history.append(costs.add(record(epoch)))
print(json.dumps(history.to_dict()))
"""


def test_an_epoch_that_another_process_began_has_no_energy(ghost_machine: GhostMachine, tmp_path: Path) -> None:
    machine = load_machine("rtx3090_2x_nvlink")
    for gpu in machine["gpus"]:
        gpu["energy"] = [10**9, 200_000]
    env = ghost_machine(machine)
    env["PYTHONPATH"] += f":{ROOT}"
    command = [sys.executable, "-c", COSTS]
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    history = json.loads(done.stdout.splitlines()[-1])
    first, *others = [epoch["extra"] for epoch in history["epochs"]]
    assert first == {"gpu_memory": 1.0}
    joules = [extra["energy_joules"] for extra in others]
    assert all(200 * 0.1 <= one < 200 * 60 for one in joules), "of the run's GPU, and not of the other"
    assert history["energy"] == {"joules": sum(joules), "epochs": 2}
