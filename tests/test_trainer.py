"""The plain Trainer trains and evaluates FDT."""

import torch
from transformers import Trainer, TrainingArguments

from modeling_fdt import FDTModel


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
