"""Accumulated micro-batches have the loss and the gradients of one batch."""

import pytest
import torch
from torch import nn
from transformers import PreTrainedModel

from modeling_fdt import FDTModel
from run_scripts.training.cached_gradients import cached_gradient_losses, frozen_running_statistics
from run_scripts.training.trainer import FDTTrainer
from tests.conftest import build_tiny_config
from tests.distributed_process import make_arguments, make_clip
from tests.test_trainer import make_pairs


def train_one_step(model: PreTrainedModel, tmp_path, **changes) -> tuple[float, dict[str, torch.Tensor]]:
    """Train a step of SGD on 16 pairs: the loss that is logged, and the gradients."""
    arguments = make_arguments(str(tmp_path), **{"per_device_train_batch_size": 16, **changes})
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    torch.manual_seed(1)
    trainer = FDTTrainer(model, arguments, train_dataset=make_pairs())
    trainer.train()
    steps = {name: before[name] - parameter.detach() for name, parameter in model.named_parameters()}
    return trainer.state.log_history[0]["loss"], steps


@pytest.mark.parametrize("num_micro_batches", [2, 4])
@pytest.mark.parametrize("build", [lambda: FDTModel(build_tiny_config()), make_clip], ids=["fdt", "clip"])
def test_accumulation_equals_one_batch(build, num_micro_batches, tmp_path):
    torch.manual_seed(0)
    whole, divided = build(), build()
    divided.load_state_dict(whole.state_dict())
    expected_loss, expected = train_one_step(whole, tmp_path)
    loss, steps = train_one_step(
        divided,
        tmp_path,
        per_device_train_batch_size=16 // num_micro_batches,
        gradient_accumulation_steps=num_micro_batches,
    )
    # float32: sums over 16 pairs in another order; the logged loss has all its digits.
    assert loss == pytest.approx(expected_loss, abs=1e-5)
    for name, step in steps.items():
        torch.testing.assert_close(step, expected[name], atol=1e-5, rtol=1e-4, msg=name)
    assert steps["logit_scale"] != 0


def run_both(layer: nn.Module, device: str, autocast: bool = False) -> list[dict]:
    """A loss over 3 x 4 rows, by cached gradients and with all rows in one graph, and what it leaves behind."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), layer, nn.Linear(8, 5)).to(device)
    initial = {name: value.clone() for name, value in model.state_dict().items()}
    micro_batches = list(torch.randn(12, 6, device=device).split(4))

    def embed(rows: torch.Tensor) -> tuple[torch.Tensor, ...]:
        with torch.autocast(device, torch.bfloat16, enabled=autocast):
            left, right = model(rows), model(rows + 1)
        return nn.functional.normalize(left.float()), nn.functional.normalize(right.float())

    def compare(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        return nn.functional.cross_entropy(5 * left @ right.T, torch.arange(12, device=device))

    results = []
    for is_cached in (True, False):
        model.load_state_dict(initial)
        model.zero_grad()
        torch.manual_seed(1)
        if is_cached:
            losses = []
            for loss in cached_gradient_losses(model, embed, compare, micro_batches):
                loss.backward()
                losses.append(loss.detach())
            loss = sum(losses)
        else:
            loss = compare(*map(torch.cat, zip(*map(embed, micro_batches), strict=True)))
            loss.backward()
        results.append(
            {
                "loss": loss.detach(),
                "gradients": [parameter.grad.clone() for parameter in model.parameters()],
                "buffers": [buffer.clone() for buffer in model.buffers()],
                "next random number": torch.rand((), device=device),
            }
        )
    return results


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("layer", ["dropout", "batch norm", "bfloat16"])
def test_both_passes_are_the_same(layer, device):
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    layers = {"dropout": nn.Dropout(0.5), "batch norm": nn.BatchNorm1d(8), "bfloat16": nn.GELU()}
    cached, expected = run_both(layers[layer], device, autocast=layer == "bfloat16")
    # Sums over micro-batches in another order; with bfloat16 gradients of a micro-batch are rounded to 8 bits.
    torch.testing.assert_close(cached, expected, atol=1e-2 if layer == "bfloat16" else 1e-6, rtol=1e-5)


def test_running_statistics_are_frozen_and_thaw():
    norm = nn.BatchNorm1d(3).train()
    rows = torch.randn(8, 3)
    with frozen_running_statistics(norm):
        frozen = norm(rows)
    assert norm.num_batches_tracked == 0 and torch.equal(norm.running_mean, torch.zeros(3))
    assert torch.equal(norm(rows), frozen)
    assert norm.num_batches_tracked == 1
