# Copyright 2026 The FDT for transformers authors. Licensed under the Apache License, Version 2.0.
"""What changes by a rule while a model trains: the logit scale's range and the temperature of grounding."""

import torch
import torch.distributed as dist
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


class TargetActiveCodes(TrainerCallback, ExportableState):
    """Steers the temperature of grounding so that an image has a wanted number of active codes.

    The wanted number goes, by the same factor every step, from what the first step counts to `target`, which it
    reaches after `RAMP_SHARE` of the steps. After every step the temperature is multiplied by that factor, and, where
    the count is not the wanted one, by `(wanted / counted) ** GAIN`. So one target fits every codebook size and width,
    where an end temperature does not. Like [`TemperatureSchedule`] it sets `model.config`.

    Args:
        target: number of active codes an image, at least 1.
    """

    RAMP_SHARE = 0.8
    # The number of active codes goes about with the temperature to the power 0.9: an error is halved in 8 steps, and
    # the count of one small batch does not throw the temperature about.
    GAIN = 0.1

    def __init__(self, target: float):
        self.target = target
        self.start = self.temperature = None
        self._counts = []  # of this process in this step: active codes and images

    def state(self) -> dict:
        attributes = {"start": self.start, "temperature": self.temperature}
        return {"args": {"target": self.target}, "attributes": attributes}

    def observe(self, image_code_weights: torch.Tensor) -> None:
        """Count the active codes of some of a step's images, (batch_size, codebook_size)."""
        active = (image_code_weights > 0).sum()
        self._counts.append(torch.stack([active, active.new_tensor(len(image_code_weights))]))

    def wanted_at(self, share: float) -> float:
        """The wanted number of active codes after that share of the steps."""
        return self.start * (self.target / self.start) ** min(share / self.RAMP_SHARE, 1.0)

    def on_train_begin(self, args, state: TrainerState, control, model: PreTrainedModel, **kwargs) -> None:
        saved = state.stateful_callbacks.get(type(self).__name__, {}).get("attributes", {})
        self.start = saved.get("start")
        self.temperature = saved.get("temperature") or model.config.grounding_temperature
        model.config.grounding_temperature = self.temperature

    def on_step_end(self, args, state: TrainerState, control, model: PreTrainedModel, **kwargs) -> None:
        counts = torch.stack(self._counts).sum(dim=0)
        self._counts = []
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(counts)
        active, num_images = counts.tolist()
        counted = active / num_images
        if self.start is None:
            self.start = counted
        wanted, next_wanted = (self.wanted_at((state.global_step + n) / state.max_steps) for n in (0, 1))
        self.temperature *= next_wanted / wanted * (wanted / counted) ** self.GAIN
        model.config.grounding_temperature = self.temperature
