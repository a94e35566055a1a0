"""What depends on how XLA compiles holds with all its effort, too, as users get it.

The other tests compile quickly, see conftest. These are the ones that compare bits of
unlike programs, and some of those that compare with the original.
"""

import os
import pathlib
import subprocess
import sys

import pytest

FOLDER = pathlib.Path(__file__).parent
OF_ONE_DEVICE = (
    "epochs_test.py::test_training_may_be_cut_into_pieces",
    "epochs_test.py::test_one_call_per_batch_gives_what_the_loop_gives",
    "epochs_test.py::test_padding_changes_nothing",
    "epochs_test.py::test_short_stages_without_random_draws_are_compiled_with_less_effort",
    "epochs_test.py::test_rollback_slows_only_the_runs_that_diverge",
    "cpu_settings_test.py::test_less_effort_changes_no_draw_and_is_for_cpus",
    "parity_test.py::test_autoencoder_gradients_and_three_steps[cardio_mlp]",
    "parity_test.py::test_autoencoder_gradients_and_three_steps[mnist_LeNet]",
    "parity_test.py::test_deep_sad_gradients_three_steps_and_scores[cardio_mlp-1.0]",
    "parity_test.py::test_deep_sad_gradients_three_steps_and_scores[mnist_LeNet-1.0]",
    "ssad_test.py::test_gammas_are_solved_side_by_side_from_one_base",
)
COMMANDS = {
    "one device": ["-m", "pytest", "-n0", *(FOLDER / test for test in OF_ONE_DEVICE)],
    "many runs": [
        FOLDER / "parallel_test.py",
        *("check_many_runs", "check_many_generative_runs"),
    ],
}


@pytest.mark.parametrize("name", COMMANDS)
def test_it_holds_with_all_effort(name):
    own = {"DEEPSAD_TEST_EFFORT": "full", "JAX_NUM_CPU_DEVICES": "4"}
    own |= {"PYTHONPATH": str(FOLDER.parent), "XLA_FLAGS": ""}
    done = subprocess.run(
        [sys.executable, *COMMANDS[name]],
        cwd=FOLDER.parent,
        env=os.environ | own,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
