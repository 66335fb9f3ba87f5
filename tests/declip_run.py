"""Runs of a few steps with DeCLIP's objective, for the tests on one process and for those on two."""

import pytest
import torch

from modeling_fdt import FDTModel
from run_scripts.data.text_views import NO_LABEL
from run_scripts.training.arguments import ObjectiveArguments
from run_scripts.training.declip import DeclipTrainer
from tests.conftest import build_tiny_config
from tests.distributed_process import make_arguments


def make_pairs(num_pairs: int = 8) -> list[dict[str, torch.Tensor]]:
    """Pairs of two views each: the first caption masked at two places, but for the last pair, which has no label."""
    generator = torch.Generator().manual_seed(1)
    rows = []
    for number in range(num_pairs):
        ids = torch.randint(5, 49000, (2, 9), generator=generator)
        mask = torch.ones(2, 9, dtype=torch.int64)
        mask[:, 9 - number % 4 :] = 0
        labels = torch.full((9,), NO_LABEL)
        if number < num_pairs - 1:
            labels[1:3] = ids[0, 1:3]
            ids[0, 1:3] = 49406
        pixels = torch.randn(2, 3, 32, 32, generator=generator)
        rows.append({"pixels": pixels, "ids": ids, "mask": mask, "labels": labels})
    return rows


def collate(rows: list[dict]) -> dict[str, torch.Tensor]:
    """As the collator for two views gives them: first views first."""
    pixels, ids, mask = (torch.stack([row[name] for row in rows], dim=1) for name in ("pixels", "ids", "mask"))
    return {
        "pixel_values": pixels.flatten(0, 1),
        "input_ids": ids.flatten(0, 1),
        "attention_mask": mask.flatten(0, 1),
        "token_labels": torch.stack([row["labels"] for row in rows]),
    }


def make_trainer(output_dir: str, objective: dict | None = None, **changes) -> DeclipTrainer:
    """A trainer of a tiny model with a queue of 32 captions, which two steps of eight pairs fill."""
    torch.manual_seed(0)
    model = FDTModel(build_tiny_config())
    objective = ObjectiveArguments(objective="declip", **{"queue_size": 32, **(objective or {})})
    arguments = make_arguments(output_dir, **changes)
    return DeclipTrainer(model, arguments, objective=objective, train_dataset=make_pairs(), data_collator=collate)


def run_declip(output_dir: str, **changes) -> dict:
    """What three steps leave behind, and what they log; those after the first see captions in the queue."""
    changes = {"max_steps": 3, "learning_rate": 0.1, "usage_entropy_weight": 0.1, **changes}
    trainer = make_trainer(output_dir, **changes)
    before = {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}
    trainer.train()
    moves = {name: tensor - before[name] for name, tensor in trainer.model.state_dict().items()}
    return {"log": trainer.state.log_history, "moves": moves, "queue": trainer.queue.features}


def assert_same_run(run: dict, expected: dict) -> None:
    """float32: sums over eight pairs in another order, in three steps."""
    for entry, other in zip(run["log"][:3], expected["log"][:3], strict=True):
        for name in ("loss", "multi_view_loss", "simsiam_loss", "nearest_neighbor_loss", "masked_language_loss"):
            assert entry[name] == pytest.approx(other[name], abs=2e-6), name
        assert entry["pairs_seen"] == other["pairs_seen"]
    for name, move in expected["moves"].items():
        tolerance = 1e-6 * max(1.0, move.abs().max().item())
        torch.testing.assert_close(run["moves"][name], move, atol=tolerance, rtol=1e-4, msg=name)
    queues = [result["queue"].sort(dim=0).values for result in (run, expected)]  # a step's captions in any order
    torch.testing.assert_close(*queues, atol=1e-6, rtol=0)
