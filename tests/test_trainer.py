"""Trainer and FDTTrainer train FDT and CLIP: schedules, ranges, numbers that are logged, precision."""

import inspect
import math

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import (
    BertConfig,
    Swinv2Config,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    VisionTextDualEncoderConfig,
    VisionTextDualEncoderModel,
    ViTConfig,
)

from modeling_fdt import FDTConfig, FDTModel
from run_scripts.training.callbacks import TargetActiveCodes, TemperatureSchedule
from run_scripts.training.pretraining import PretrainingTrainer
from run_scripts.training.trainer import FDTTrainer, FDTTrainingArguments
from tests.conftest import build_tiny_config
from tests.distributed_process import make_clip


def make_pairs(num_pairs: int = 16) -> list[dict[str, torch.Tensor]]:
    """Pairs that can be told apart: the picture's colour and the caption's token say which it is."""
    return [
        {
            "pixel_values": torch.full((3, 32, 32), number / num_pairs) + 0.05 * torch.randn(3, 32, 32),
            "input_ids": torch.tensor([49407, 100 + number, 49408]),
            "attention_mask": torch.ones(3, dtype=torch.long),
        }
        for number in range(num_pairs)
    ]


def make_trainer(model, output_dir, trainer_class=FDTTrainer, **changes) -> FDTTrainer:
    arguments = {
        "output_dir": str(output_dir),
        "max_steps": 4,
        "per_device_train_batch_size": 8,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "use_cpu": True,
        "disable_tqdm": True,
    }
    return trainer_class(model, FDTTrainingArguments(**{**arguments, **changes}), train_dataset=make_pairs())


def get_logged(trainer: Trainer, name: str) -> list[float]:
    return [entry[name] for entry in trainer.state.log_history if name in entry]


def test_plain_trainer(tiny_config, tmp_path):
    predictions = []

    def compute_metrics(prediction) -> dict[str, float]:
        predictions.append(prediction.predictions)
        image_embeds, text_embeds = prediction.predictions
        is_right = (image_embeds @ text_embeds.T).argmax(axis=1) == range(len(image_embeds))
        return {"accuracy": is_right.mean()}

    pairs = make_pairs()
    arguments = TrainingArguments(
        output_dir=str(tmp_path),
        per_device_train_batch_size=16,
        per_device_eval_batch_size=5,  # batches of 5, 5, 5, 1: embeddings are joined, logits could not be
        max_steps=30,
        learning_rate=3e-3,
        report_to="none",
        use_cpu=True,
        remove_unused_columns=False,
        ddp_find_unused_parameters=False,
    )
    trainer = Trainer(
        FDTModel(tiny_config), arguments, train_dataset=pairs, eval_dataset=pairs, compute_metrics=compute_metrics
    )
    before = trainer.evaluate()
    trainer.train()
    after = trainer.evaluate()
    assert [embeds.shape for embeds in predictions[0]] == [(16, 32), (16, 32)]
    assert after["eval_loss"] < 0.9 * before["eval_loss"] and "eval_accuracy" in after
    torch.testing.assert_close(
        FDTModel.from_pretrained(tmp_path / "checkpoint-30").codebook, trainer.model.codebook, rtol=0, atol=0
    )


def make_dual_encoder() -> VisionTextDualEncoderModel:
    tower = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    towers = ViTConfig(**tower, image_size=32, patch_size=16), BertConfig(**tower, vocab_size=49409)
    config = VisionTextDualEncoderConfig.from_vision_text_configs(*towers, projection_dim=16)
    return VisionTextDualEncoderModel(config).eval()


def make_fdt() -> FDTModel:
    return FDTModel(build_tiny_config())


@pytest.mark.parametrize("build", [make_fdt, make_clip, make_dual_encoder])
def test_loss_is_that_of_the_model(build, tmp_path):
    model = build()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    batch = {name: torch.stack([pair[name] for pair in make_pairs()]) for name in make_pairs(1)[0]}
    expected = model(**batch, return_loss=True).loss.item()
    torch.manual_seed(0)
    trainer = make_trainer(
        model, tmp_path, max_steps=1, per_device_train_batch_size=16, train_sampling_strategy="sequential"
    )
    trainer.train_dataset = [{name: tensor[row] for name, tensor in batch.items()} for row in range(16)]
    trainer.train()
    assert get_logged(trainer, "loss") == [pytest.approx(expected, abs=1e-6)]


def test_learning_rate_rises_from_above_zero_and_falls_as_a_cosine(tmp_path):
    trainer = make_trainer(
        make_clip(),
        tmp_path,
        max_steps=10,
        learning_rate=1e-3,
        warmup_steps=4,
        lr_scheduler_type="cosine_warmup_with_min_lr",
        lr_scheduler_kwargs={"min_lr": 0.0, "warmup_lr_rate": 0.1},
    )
    trainer.train()
    warmup = [1e-4, 4e-4, 7e-4, 1e-3]
    cosine = [5e-4 * (1 + math.cos(math.pi * step / 6)) for step in range(1, 7)]
    assert get_logged(trainer, "learning_rate") == pytest.approx(warmup + cosine, abs=1e-9)


def test_logit_scale_stays_in_its_range(tmp_path):
    model = FDTModel(build_tiny_config(logit_scale_init_value=2.6592))
    trainer = make_trainer(model, tmp_path, learning_rate=0.5, logit_scale_min=3.0, logit_scale_max=3.2)
    first = []
    model.register_forward_pre_hook(lambda module, args: first.append(module.logit_scale.item()))
    trainer.train()
    assert first[0] == pytest.approx(3.0)
    scales = get_logged(trainer, "logit_scale")
    assert all(3.0 - 1e-6 <= scale <= 3.2 + 1e-6 for scale in scales)
    assert any(scale in (pytest.approx(3.0), pytest.approx(3.2)) for scale in scales)  # a step of 0.5 leaves it


def test_processes_that_would_train_alone_are_refused(tmp_path, monkeypatch):
    arguments = FDTTrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to="none")
    arguments._n_gpu = 2
    with pytest.raises(ValueError, match="this process has 2 GPUs.*torchrun --nproc_per_node 2"):
        FDTTrainer(make_fdt(), arguments, train_dataset=make_pairs())
    arguments._n_gpu = 1
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="2 processes were started .WORLD_SIZE., but each would train alone"):
        FDTTrainer(make_fdt(), arguments, train_dataset=make_pairs())


def test_precision_is_that_of_the_arguments(tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")  # of `accelerate launch` with another config file
    with pytest.raises(ValueError, match="asks for mixed_precision='bf16'.*for bf16=False and fp16=False"):
        make_trainer(make_fdt(), tmp_path)
    assert make_trainer(make_fdt(), tmp_path, bf16=True).accelerator.mixed_precision == "bf16"


def test_private_methods_of_trainer_that_ours_override_are_these_and_take_the_same():
    own = PretrainingTrainer.__mro__[: PretrainingTrainer.__mro__.index(Trainer)]
    overridden = {name for cls in own for name in vars(cls) if name[:2] != "__" and hasattr(Trainer, name)}
    overridden = {name for name in overridden if name.startswith("_")}
    # Each has a comment that says why. None is met by accident, and a release without one of them is noticed here.
    assert overridden == {
        *("_get_train_sampler", "_prepare_inputs", "_push_from_checkpoint", "_save", "_save_rng_state"),
    }
    for name in overridden:
        ours, theirs = (inspect.signature(getattr(cls, name)).parameters for cls in (PretrainingTrainer, Trainer))
        assert list(ours) == list(theirs), name


def test_every_row_is_evaluated(tmp_path):
    trainer = make_trainer(make_fdt(), tmp_path, per_device_eval_batch_size=8)
    rows = make_pairs(30)
    image_embeds, _ = trainer.predict(rows).predictions
    assert len(image_embeds) == 30
    batches = [len(batch["input_ids"]) for batch in trainer.get_eval_dataloader(rows)]
    assert batches == [8, 8, 8, 6] and trainer.args.dataloader_drop_last


@pytest.mark.parametrize("logit_scale_max", [None, 6.0, 4.0])
def test_clip_never_exceeds_the_cap_of_its_loss(logit_scale_max, tmp_path):
    model = make_clip()
    trainer = make_trainer(
        model, tmp_path, optim="sgd", learning_rate=1e-3, max_grad_norm=0.0, logit_scale_max=logit_scale_max
    )
    trainer.eval_dataset = make_pairs(4)
    after = []
    # A step of 1, from 2.66 on.
    model.logit_scale.register_hook(lambda grad: torch.full_like(grad, -1000.0))
    trainer.add_callback(AfterStep(lambda: after.append(model.logit_scale.item())))
    trainer.train()
    assert after[0] == pytest.approx(3.6592)
    assert after[2:] == pytest.approx([min(logit_scale_max or 6.0, math.log(100))] * 2)
    with torch.no_grad():
        batch = {name: torch.stack([pair[name] for pair in trainer.eval_dataset]) for name in make_pairs(1)[0]}
        assert trainer.evaluate()["eval_loss"] == pytest.approx(model(**batch, return_loss=True).loss.item(), abs=1e-5)


class AfterStep(TrainerCallback):
    """Calls a function after each step, when other callbacks have been called."""

    def __init__(self, call):
        self.call = call

    def on_step_end(self, *args, **kwargs) -> None:
        self.call()


def test_temperature_falls_and_is_saved_with_every_checkpoint(tmp_path):
    trainer = make_trainer(
        FDTModel(build_tiny_config(grounding_temperature=8.0)),
        tmp_path,
        temperature_decay=0.5,
        temperature_decay_steps=2,
        temperature_min=3.0,
        save_strategy="steps",
        save_steps=1,
    )
    used = []
    trainer.model.vision_grounding.register_forward_pre_hook(
        lambda module, args: used.append(module.config.grounding_temperature)
    )
    trainer.train()
    expected = [8.0, 8 * 0.5**0.5, 4.0, 3.0, 3.0]
    assert used == pytest.approx(expected[:4])
    assert get_logged(trainer, "temperature") == pytest.approx(expected[1:])
    saved = [FDTConfig.from_pretrained(tmp_path / f"checkpoint-{step}").grounding_temperature for step in (1, 2, 4)]
    assert saved == pytest.approx([expected[1], expected[2], expected[4]])


def test_constant_decay_leaves_the_temperature():
    schedule = TemperatureSchedule(decay=1.0, decay_steps=100, minimum=0.0)
    schedule.start = 1000.0
    assert schedule.temperature_at(86560) == 1000.0


@pytest.mark.parametrize("temperature, codebook_size, target", [(100.0, 64, 6.0), (1.0, 256, 20.0)])
def test_temperature_is_steered_to_the_wanted_number_of_active_codes(temperature, codebook_size, target, tmp_path):
    torch.manual_seed(0)
    model = FDTModel(build_tiny_config(grounding_temperature=temperature, codebook_size=codebook_size))
    trainer = make_trainer(model, tmp_path, max_steps=100, learning_rate=1e-3, target_active_codes=target)
    trainer.train()
    active = get_logged(trainer, "active_codes_per_image")
    assert abs(math.log(active[0] / target)) > 1  # down from nearly all codes, or up from a few
    assert sum(active[90:]) / 10 == pytest.approx(target, rel=0.2)  # the steering lags behind in so short a run
    assert model.config.grounding_temperature == get_logged(trainer, "temperature")[-1]


def test_wanted_number_falls_by_one_factor_to_the_target_and_stays():
    steering = TargetActiveCodes(target=8.0)
    steering.start = 128.0
    assert [steering.wanted_at(share) for share in (0.0, 0.2, 0.4, 0.8, 1.0)] == pytest.approx([128, 64, 32, 8, 8])


def test_compiled_model_reads_the_temperature_of_every_step(tiny_model):
    inputs = {name: torch.stack([pair[name] for pair in make_pairs(4)]) for name in make_pairs(1)[0]}
    compiled, num_graphs = torch.compile(tiny_model, backend=count_graphs), []
    GRAPHS.clear()
    for temperature in (5.0, 4.0, 3.0, 2.0):
        tiny_model.config.grounding_temperature = temperature
        compiled_loss = compiled(**inputs).loss
        torch.testing.assert_close(compiled_loss, tiny_model(**inputs).loss, atol=1e-6, rtol=0)
        num_graphs.append(len(GRAPHS))
    assert num_graphs[1] == num_graphs[-1]  # the second value makes it a variable of the graph


GRAPHS = []


def count_graphs(graph_module, example_inputs):
    GRAPHS.append(graph_module)
    return graph_module.forward


@pytest.mark.parametrize("build", ["fdt", "swin", "clip"])
def test_weight_decay_spares_biases_norms_and_logit_scale_only(build, tmp_path):
    if build == "clip":
        model = make_clip()
    elif build == "swin":
        swin = Swinv2Config(image_size=32, patch_size=4, embed_dim=8, depths=[1, 1], num_heads=[1, 2], window_size=2)
        model = FDTModel(build_tiny_config(vision_config=swin))
    else:
        model = FDTModel(build_tiny_config())
    trainer = make_trainer(model, tmp_path, weight_decay=0.1)
    decayed = set(trainer.get_decay_parameter_names(model))
    for name, parameter in model.named_parameters():
        # Biases are in the name too of the network that gives Swin v2's position biases; it has logit scales as well.
        is_spared = any(word in name for word in ("bias", "norm", "logit_scale"))
        is_spared |= "query_projection" in name and parameter.ndim == 1
        assert (name in decayed) != is_spared, name
    assert ("codebook" in decayed) == (build != "clip")
    groups = trainer.create_optimizer().param_groups
    assert [group["weight_decay"] for group in groups] == [0.1, 0.0]


def test_numbers_reach_the_log_and_tensorboard(tmp_path, monkeypatch):
    monkeypatch.delenv("TENSORBOARD_LOGGING_DIR", raising=False)
    trainer = make_trainer(FDTModel(build_tiny_config()), tmp_path, report_to="tensorboard", dead_code_steps=2)
    trainer.train()
    names = {"active_codes_per_image", "active_codes_per_caption", "dead_codes", "logit_scale"}
    names |= {"temperature", "pairs_seen", "pairs_per_second", "loss"}
    assert get_logged(trainer, "pairs_seen") == [8, 16, 24, 32]
    assert all(0 < number <= 64 for number in get_logged(trainer, "active_codes_per_image"))
    assert get_logged(trainer, "dead_codes")[0] == 0 < get_logged(trainer, "dead_codes")[-1] < 64
    (event_file,) = tmp_path.rglob("events.out.tfevents.*")
    events = EventAccumulator(str(event_file)).Reload()
    for name in names:
        scalars = [event.value for event in events.Scalars(f"train/{name}")]
        assert scalars == pytest.approx(get_logged(trainer, name), rel=1e-6), name


@pytest.mark.parametrize(
    "changes",
    [{"bf16": True}, {"gradient_checkpointing": True}, {"torch_compile": True, "torch_compile_backend": "aot_eager"}],
    ids=["bf16", "checkpointing", "compiled"],
)
@pytest.mark.parametrize("gradient_accumulation_steps", [1, 2])
def test_precision_and_speed_by_flags_of_trainer(changes, gradient_accumulation_steps, tmp_path):
    losses = []
    for flags in ({}, changes):
        torch.manual_seed(0)
        model = FDTModel(build_tiny_config())
        arguments = {"max_steps": 2, "gradient_accumulation_steps": gradient_accumulation_steps}
        trainer = make_trainer(model, tmp_path, **arguments, **flags)
        trainer.train()
        losses.append(get_logged(trainer, "loss"))
        if "bf16" in flags:
            assert model.codebook.dtype == torch.float32
        if "gradient_checkpointing" in flags:
            assert model.is_gradient_checkpointing
    # bfloat16 has 8 bits; the other two compute the same in float32.
    assert losses[1] == pytest.approx(losses[0], abs=0.05 if "bf16" in changes else 1e-4)
    assert (losses[1] == losses[0]) <= ("bf16" not in changes)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"logit_scale_min": 4.0, "logit_scale_max": 3.0}, "logit_scale_min must not exceed"),
        ({"temperature_min": 1.0}, "temperature_min needs temperature_decay"),
        ({"temperature_decay": 0.5}, "temperature_decay_steps must be above 0, got None"),
        ({"temperature_decay": -0.5, "temperature_decay_steps": 1}, "temperature_decay must be above 0, got -0.5"),
        (
            {"temperature_decay": 0.5, "load_best_model_at_end": True, "eval_strategy": "steps", "eval_steps": 1}
            | {"save_strategy": "steps", "save_steps": 1},
            "restores weights alone",
        ),
        ({"target_active_codes": 0.5}, "target_active_codes must be at least 1, got 0.5"),
        (
            {"target_active_codes": 8.0, "temperature_decay": 0.5, "temperature_decay_steps": 1},
            "target_active_codes steers the temperature, and so does temperature_decay",
        ),
        (
            {"target_active_codes": 8.0, "load_best_model_at_end": True, "eval_strategy": "steps", "eval_steps": 1}
            | {"save_strategy": "steps", "save_steps": 1},
            "not the temperature of target_active_codes",
        ),
        ({"deepspeed": {"zero_optimization": {"stage": 2}}}, "DeepSpeed is not supported"),
        ({"dead_code_steps": 0}, "dead_code_steps must be at least 1"),
        ({"usage_entropy_weight": -1.0}, "usage_entropy_weight must be at least 0"),
        ({"temperature_decay": 0.5, "temperature_decay_steps": 1}, "for models with codes, got a CLIPModel"),
        ({"target_active_codes": 8.0}, "for models with codes, got a CLIPModel"),
        ({"reseed_dead_codes": True}, "for models with codes, got a CLIPModel"),
        ({"usage_entropy_weight": 0.1}, "for models with codes, got a CLIPModel"),
    ],
)
def test_bad_arguments_are_refused(changes, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        make_trainer(make_clip(), tmp_path, **changes)


def test_deepspeed_of_a_launcher_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    with pytest.raises(ValueError, match="DeepSpeed is not supported"):
        make_trainer(make_clip(), tmp_path)
