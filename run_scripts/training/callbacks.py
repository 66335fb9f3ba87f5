# Copyright 2026 The FDT for transformers authors. Licensed under the Apache License, Version 2.0.
"""What changes by a rule while a model trains: the logit scale's range and the temperature of grounding."""

import torch
from transformers import PreTrainedModel, TrainerCallback, TrainerState
from transformers.trainer_callback import ExportableState


class LogitScaleClamp(TrainerCallback):
    """Holds `logit_scale` in a range, from before the first step.

    Args:
        minimum, maximum: natural logarithms of the factor on cosine similarities; None does not bound.

    Source: the original clamps to [3, 6] before and after every step.
    """

    def __init__(self, minimum: float | None, maximum: float | None):
        self.minimum, self.maximum = minimum, maximum

    @torch.no_grad()
    def on_optimizer_step(self, args, state, control, model: PreTrainedModel, **kwargs) -> None:
        model.logit_scale.clamp_(self.minimum, self.maximum)

    on_train_begin = on_optimizer_step


class TemperatureSchedule(TrainerCallback, ExportableState):
    """Sets the temperature of grounding to `max(start * decay ** (step / decay_steps), minimum)`.

    The temperature goes into `model.config`, which the model reads at every forward pass and every checkpoint holds.
    The start is the temperature with which training began; a resumed run takes it from its checkpoint.

    Args:
        decay: factor on the temperature for every `decay_steps` steps, above 0.
        decay_steps: number of optimiser steps, above 0.
        minimum: floor of the temperature, at least 0.

    Source: `t_decay` of the original.
    """

    def __init__(self, decay: float, decay_steps: int, minimum: float):
        self.decay, self.decay_steps, self.minimum = decay, decay_steps, minimum
        self.start = None

    def state(self) -> dict:
        arguments = {"decay": self.decay, "decay_steps": self.decay_steps, "minimum": self.minimum}
        return {"args": arguments, "attributes": {"start": self.start}}

    def temperature_at(self, step: int) -> float:
        """The temperature after `step` optimiser steps."""
        return max(self.start * self.decay ** (step / self.decay_steps), self.minimum)

    def on_train_begin(self, args, state: TrainerState, control, model: PreTrainedModel, **kwargs) -> None:
        saved = state.stateful_callbacks.get(type(self).__name__, {}).get("attributes", {})
        self.start = saved.get("start") or model.config.grounding_temperature
        self.on_step_end(args, state, control, model)

    def on_step_end(self, args, state: TrainerState, control, model: PreTrainedModel, **kwargs) -> None:
        model.config.grounding_temperature = self.temperature_at(state.global_step)
