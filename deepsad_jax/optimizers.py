"""Optimizers as values: the paper's, and any function that makes one of Optax.

They are called with the number of steps in an epoch.
"""

import dataclasses
import inspect
import warnings
from collections.abc import Callable
from typing import Any

import jax
import optax

from deepsad_jax import checks, values


@dataclasses.dataclass(frozen=True)
class Adam:
    """The paper's optimizer: Adam with coupled L2 and a step-wise learning rate.

    A value that makes the optimizer from the number of steps in an epoch. L2 is added
    to the gradient before Adam sees it, as in torch.optim.Adam.

    Attributes:
        learning_rate: > 0; divided by 10 at each milestone.
        milestones: epochs (counted from 0) at which the learning rate drops.
        weight_decay: factor of the parameters that is added to their gradient, >= 0.
    """

    learning_rate: float = 1e-4
    milestones: tuple[int, ...] = (50,)
    weight_decay: float = 0.5e-6

    def __post_init__(self):
        if isinstance(self.milestones, list):
            object.__setattr__(self, "milestones", tuple(self.milestones))
        rate, decay, epochs = self.learning_rate, self.weight_decay, self.milestones
        checks.require(
            "learning_rate", rate, checks.is_finite(rate) and rate > 0, "> 0 and finite"
        )
        checks.require(
            "weight_decay",
            decay,
            checks.is_finite(decay) and decay >= 0,
            ">= 0 and finite",
        )
        checks.require(
            "milestones",
            epochs,
            isinstance(epochs, tuple) and all(map(checks.is_count, epochs)),
            f"a tuple of epochs, integers from 0 to {checks.MOST_EPOCHS}",
        )

    def __call__(self, steps: jax.typing.ArrayLike) -> optax.GradientTransformation:
        drops = dict.fromkeys(self.milestones, 0.1)
        by_epoch = optax.piecewise_constant_schedule(self.learning_rate, drops)
        return optax.chain(
            optax.add_decayed_weights(self.weight_decay),
            optax.scale_by_adam(),
            optax.scale_by_learning_rate(lambda count: by_epoch(count // steps)),
        )


@dataclasses.dataclass(frozen=True, eq=False)
class Optimizer(values.ByContent):
    """An optimizer as a value: the function that makes it, and with what.

    Optax's transformations are equal to themselves alone; stages that are to share
    their compiled programs have these.

    Attributes:
        function: returns an `optax.GradientTransformation`; called with the options
            and, if it has such an argument, with `steps`, those of an epoch.
        options: pairs of a name and a value.
    """

    function: Callable
    options: tuple[tuple[str, Any], ...] = ()

    @property
    def takes_steps(self) -> bool:
        """Whether the function has the argument `steps`."""
        return "steps" in inspect.signature(self.function).parameters

    def __call__(self, steps: jax.typing.ArrayLike) -> optax.GradientTransformation:
        options = dict(self.options)
        if self.takes_steps:
            options["steps"] = steps
        return checked(self.function(**options))


def checked(made: Any) -> optax.GradientTransformation:
    """What a function has made, if it is an optimizer."""
    is_one = isinstance(made, optax.GradientTransformation)
    checks.require(
        "what optimizer makes", made, is_one, "an optax.GradientTransformation"
    )
    return made


def check_hashable(optimizer: Any) -> None:
    """Raises ValueError for what cannot be told from another one."""
    try:
        hash(optimizer)
    except TypeError as error:
        raise ValueError(
            f"optimizer, a {type(optimizer).__name__}, cannot be hashed ({error}); "
            "make it a frozen dataclass or a function"
        ) from error


def warn_of_averages(opt_state: Any) -> None:
    """Warns of an optimizer whose parameters are not those to evaluate."""

    def is_schedule_free(state):
        return isinstance(state, optax.contrib.ScheduleFreeState)

    leaves = jax.tree.leaves(opt_state, is_leaf=is_schedule_free)
    if any(map(is_schedule_free, leaves)):
        warnings.warn(
            "a schedule-free optimizer has other parameters for evaluation than those "
            "that it trains, which are the model's; optax.contrib's "
            "schedule_free_eval_params gives them in a loop of your own",
            stacklevel=3,
        )


def update_with(update: Callable, params: Any, more: dict[str, Any]) -> tuple[Any, Any]:
    """The updates and the state of an optimizer.

    Args:
        update: of the gradients and the state.
        params: what is trained.
        more: other arguments that there are, by name.

    Raises:
        ValueError: if the optimizer needs still others.
    """
    try:
        return update(params, **more)
    except TypeError as error:
        if "required keyword-only argument" not in str(error):
            raise
        raise ValueError(
            f"the optimizer cannot be used: its update() is{str(error).split(')')[-1]}"
            ", and a step has the gradients, the parameters and the value of the loss"
        ) from error
