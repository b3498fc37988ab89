"""The budget of each training in a comparison, as the user writes it."""

import re
from typing import Any, NamedTuple

from metatransfer.errors import UserError

_UNITS = {"s": 1, "sec": 1, "m": 60, "min": 60, "h": 3600}
_VALIDATIONS, _FEWEST, _MOST = 10, 5, 20


class TrainingBudget(NamedTuple):
    """A limit in seconds or in optimiser steps.

    Attributes:
        seconds: of each training.
        steps: of each training.
    """

    seconds: float | None = None
    steps: int | None = None

    @classmethod
    def parse(cls, text: str) -> "TrainingBudget":
        """Reads a budget such as ``10m``, ``90s`` or ``500steps``.

        Raises:
            UserError: the text is something else, or the number is not positive.
        """
        found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([a-z]+)", text.strip().lower())
        number, unit = (float(found[1]), found[2]) if found else (0.0, "")
        if unit in ("step", "steps") and number >= 1 and number.is_integer():
            return cls(steps=int(number))
        if unit in _UNITS and number > 0:
            return cls(seconds=number * _UNITS[unit])
        raise UserError(f"budget must be a time such as 10m or 90s, or steps such as 500steps, but is '{text}'.")

    def __str__(self) -> str:
        if self.steps is not None:
            return f"{self.steps} optimiser steps"
        assert self.seconds is not None
        minutes = self.seconds / 60
        return f"at most {f'{minutes:g} min' if minutes >= 1 else f'{self.seconds:g} s'} of training"

    def limits(self) -> dict[str, Any]:
        """Arguments of the Trainer.

        A time is an upper limit: schedules need the number of epochs that a configuration has, and it may end earlier.
        With steps, about ten validations choose the best state: 5 to 20, if that lets the last one be at the end.
        """
        if self.steps is not None:
            fitting = [number for number in range(_FEWEST, _MOST + 1) if self.steps % number == 0]
            number = min(fitting, key=lambda number: abs(number - _VALIDATIONS), default=_VALIDATIONS)
            every = max(1, self.steps // number)
            plan = {"max_epochs": -1, "max_steps": self.steps, "max_time": None}
            return plan | {"val_check_interval": every, "check_val_every_n_epoch": None}
        assert self.seconds is not None
        minutes, seconds = divmod(max(1, round(self.seconds)), 60)
        days, minutes = divmod(minutes, 24 * 60)
        return {"max_time": f"{days:02d}:{minutes // 60:02d}:{minutes % 60:02d}:{seconds:02d}"}
