"""Processes that train one run together: killed, started again, equal to the bit."""

import os
import pathlib
import random
import signal
import socket
import subprocess
import sys
import time

import kill_harness
import numpy as np
import pytest

from experiments import stopping

ROOT = pathlib.Path(__file__).parents[1]
EPOCHS = 12


@pytest.fixture
def data(tmp_path):
    rng = np.random.default_rng(0)
    x, truth = rng.random((200, 5), np.float32), np.arange(200) % 10 == 0
    x[truth] += 0.5
    arrays = {"x_train": x, "semi_targets": -1 * (np.arange(200) % 40 == 0)}
    arrays |= {"x_test": x[:100], "y_test": truth[:100].astype(int)}
    (tmp_path / "data").mkdir()
    for name, array in arrays.items():
        np.save(tmp_path / "data" / f"{name}.npy", array)
    return tmp_path / "data"


def free_port():
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


def start(data, folder, coordinator="", **environment):
    """Two processes of one device each, of which each reads its half of the batches."""
    coordinator = coordinator or f"localhost:{free_port()}"
    arguments = [
        "--config=configs/breast_cancer.py",
        f"--config.data.name={data}",
        *("--config.data.stream=True", "--config.devices=0"),
        *("--config.pretrain.epochs=2", f"--config.train.epochs={EPOCHS}"),
        *("--config.checkpoint.epochs=1", "--config.checkpoint.seconds=0"),
        *(f"--workdir={folder}", f"--coordinator={coordinator}"),
    ]
    if coordinator != "auto":
        arguments.append("--processes=2")
    return [
        subprocess.Popen(
            [
                *(sys.executable, "-m", "experiments.run", *arguments),
                *([] if coordinator == "auto" else [f"--process={i}"]),
            ],
            cwd=ROOT,
            env={
                **os.environ,
                "JAX_PLATFORMS": "cpu",
                "JAX_NUM_CPU_DEVICES": "1",
                **{name: value.format(i) for name, value in environment.items()},
            },
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for i in range(2)
    ]


def finish(processes):
    for process in processes:
        errors = process.communicate(timeout=300)[1]
        assert process.returncode == 0, errors


def wait_for_checkpoint(folder, processes):
    while not any(p.name.isdigit() for p in folder.glob("checkpoints/train/*")):
        for process in processes:
            assert process.poll() is None, process.stderr.read()
        time.sleep(0.01)


def test_a_killed_process_ends_the_other_and_both_go_on_to_the_same_bits(
    data, tmp_path
):
    finish(start(data, tmp_path / "undisturbed"))
    folder = tmp_path / "killed"
    first, second = start(data, folder)
    wait_for_checkpoint(folder, (first, second))
    second.send_signal(signal.SIGKILL)
    second.communicate()
    began = time.monotonic()
    errors = first.communicate(timeout=60)[1]
    assert time.monotonic() - began < 60 and first.returncode == 2, errors
    (sentence,) = (line for line in errors.splitlines() if "error: " in line)
    assert sentence.endswith(f"; {stopping.ALONE}")
    assert not (folder / "results.json").exists()
    # Started again by a scheduler, as Open MPI tells of itself.
    scheduler = {
        "OMPI_MCA_orte_hnp_uri": f"{random.randrange(2**24)}.0;tcp://127.0.0.1:1",
        "OMPI_COMM_WORLD_SIZE": "2",
        "OMPI_COMM_WORLD_RANK": "{}",
        "OMPI_COMM_WORLD_LOCAL_RANK": "{}",
    }
    finish(start(data, folder, "auto", **scheduler))
    found, expected = map(kill_harness.content, (folder, tmp_path / "undisturbed"))
    assert found == expected
