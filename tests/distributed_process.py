"""What test_distributed.py runs under torchrun: every scenario on two processes, their results in a folder."""

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType
from datasets import Dataset, IterableDataset
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from transformers import CLIPConfig, CLIPModel, PreTrainedModel, Trainer, set_seed

from modeling_fdt import FDTModel
from modeling_fdt.loss_fdt import global_contrastive_loss
from run_scripts.training.trainer import FDTTrainer, FDTTrainingArguments
from tests.conftest import build_tiny_config


def make_batch() -> dict[str, torch.Tensor]:
    """Eight pairs, captions of different lengths."""
    generator = torch.Generator().manual_seed(1)
    lengths = torch.tensor([9, 4, 7, 5, 3, 9, 6, 2])
    return {
        "pixel_values": torch.randn(8, 3, 32, 32, generator=generator),
        "input_ids": torch.randint(5, 49000, (8, 9), generator=generator),
        "attention_mask": (torch.arange(9) < lengths[:, None]).long(),
    }


def make_rows(num_copies: int = 1) -> list[dict[str, torch.Tensor]]:
    """The same pairs as rows, each so many times."""
    batch = make_batch()
    return [{name: tensor[row] for name, tensor in batch.items()} for row in range(8)] * num_copies


def make_model() -> FDTModel:
    torch.manual_seed(0)
    return FDTModel(build_tiny_config())


def make_clip() -> CLIPModel:
    torch.manual_seed(0)
    tower = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    text_config = {**tower, "vocab_size": 49409, "bos_token_id": 49407, "eos_token_id": 49408}
    vision_config = {**tower, "image_size": 32, "patch_size": 16}
    return CLIPModel(CLIPConfig(text_config=text_config, vision_config=vision_config, projection_dim=16))


def make_arguments(output_dir: str, **changes) -> FDTTrainingArguments:
    arguments = {
        "output_dir": output_dir,
        "max_steps": 1,
        "per_device_train_batch_size": 4,
        "train_sampling_strategy": "sequential",
        "optim": "sgd",
        "learning_rate": 1.0,
        "max_grad_norm": 0.0,
        "report_to": "none",
        "use_cpu": True,
        "logging_steps": 1,
        "save_strategy": "no",
        "disable_tqdm": True,
    }
    arguments = FDTTrainingArguments(**{**arguments, **changes})
    if "fsdp" in changes:
        # accelerate shards only what trains on accelerators: from here on it is told that these processes do.
        AcceleratorState._reset_state()
        PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
    return arguments


def train(model: PreTrainedModel, output_dir: str, trainer_class=FDTTrainer, rows=None, **changes) -> dict:
    """What training logs, and how far each parameter went: with SGD and a rate of 1 the gradients of one step."""
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    trainer = trainer_class(
        model, make_arguments(output_dir, **changes), train_dataset=make_rows() if rows is None else rows
    )
    trainer.train()
    moves = {name: before[name] - parameter.detach() for name, parameter in model.named_parameters()}
    return {"log": trainer.state.log_history, "moves": moves}


def run_model(rank: int, world_size: int) -> dict:
    model = make_model()
    local = {name: tensor.chunk(world_size)[rank] for name, tensor in make_batch().items()}
    wrapped = DistributedDataParallel(model.train())  # find_unused_parameters=False: every parameter must be used
    output = wrapped(**local)
    output.loss.backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    result = {name: output[name].detach() for name in ("loss", "logits_per_image", "logits_per_text")}
    result["gradients"] = gradients
    wrapped(**local).loss.backward()  # a second step stops here if the first left a parameter without a gradient
    if rank == 0:  # Evaluation makes no collective call: one rank alone would hang in one.
        result["evaluation"] = model.eval()(**local).logits_per_image.detach()
    return result


def make_embeddings() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Eight images and captions of length 1, and a logit scale."""
    generator = torch.Generator().manual_seed(2)
    image_embeds, text_embeds = torch.nn.functional.normalize(torch.randn(2, 8, 16, generator=generator), dim=-1)
    return image_embeds.requires_grad_(), text_embeds.requires_grad_(), torch.tensor(3.0, requires_grad=True)


def run_loss(rank: int, world_size: int) -> dict:
    """The loss of this process's pairs, its gradients and its logits, nothing averaged by anyone."""
    image_embeds, text_embeds, logit_scale = make_embeddings()
    local = (embeds.detach().chunk(world_size)[rank].requires_grad_() for embeds in (image_embeds, text_embeds))
    inputs = (*local, logit_scale)
    loss, logits_per_image, logits_per_text = global_contrastive_loss(*inputs)
    gradients = torch.autograd.grad(loss, inputs)
    return {"loss": loss.detach(), "logits": [logits_per_image, logits_per_text], "gradients": gradients}


def run_uneven(rank: int) -> list[str]:
    """The errors of a process with fewer pairs than the other, and of one with fewer captions than images."""
    errors, batch = [], make_batch()
    uneven = {name: tensor[: 4 - rank] for name, tensor in batch.items()}
    lacking = {name: tensor[: 4 - rank * (name != "pixel_values")] for name, tensor in batch.items()}
    for inputs in (uneven, lacking):
        try:
            make_model().train()(**inputs)
        except ValueError as error:
            errors.append(str(error))
    return errors


def read_shards(shards: list[int]):
    """A stream whose second shard is longer by two batches and a half."""
    for shard in shards:
        yield from make_rows(2)[: (8, 18)[shard]]


def run_stream(output_dir: str) -> list[dict]:
    """Processes that read shards of different length on their own, past the end of the shorter one."""
    stream = IterableDataset.from_generator(read_shards, gen_kwargs={"shards": [0, 1]}).with_format("torch")
    changes = {"max_steps": 3, "accelerator_config": {"dispatch_batches": False}}
    return train(make_model(), output_dir, rows=stream, **changes)["log"]


def make_numbered_rows() -> Dataset:
    """Twelve pairs of six kinds, in an order that depends on the epoch."""
    rows = make_rows(2)[:12]
    columns = {name: [row[name].tolist() for row in rows] for name in rows[0]}
    return Dataset.from_dict({**columns, "kind": [row % 6 for row in range(12)]}).with_format("torch")


def collate(rows: list[dict]) -> dict[str, torch.Tensor]:
    """Pairs as they are, pictures with random noise."""
    batch = {name: torch.stack([row[name] for row in rows]) for name in make_batch()}
    return {**batch, "pixel_values": batch["pixel_values"] + 0.1 * torch.randn(len(rows), 3, 32, 32)}


def run_resumed(output_dir: str, distinct_column: str | None = None, **changes) -> list[list[float]]:
    """The losses of a run of 11 steps, three to an epoch, and of one resumed within its third epoch."""
    losses = []
    for resume_from_checkpoint in (None, f"{output_dir}/checkpoint-7"):
        arguments = make_arguments(
            output_dir,
            max_steps=11,
            learning_rate=0.1,
            per_device_train_batch_size=2,
            train_sampling_strategy="random",
            save_strategy="steps",
            save_steps=7,
            **changes,
        )
        trainer = FDTTrainer(
            make_model(),
            arguments,
            train_dataset=make_numbered_rows(),
            data_collator=collate,
            distinct_column=distinct_column,
        )
        trainer.train(resume_from_checkpoint)
        losses.append([entry["loss"] for entry in trainer.state.log_history if "loss" in entry])
    return losses


def shard(state_dict_type: str) -> dict:
    """The arguments of a run with FSDP2. torch cannot load the whole state of SGD, which has none."""
    config = {"version": 2, "cpu_ram_efficient_loading": False, "state_dict_type": state_dict_type}
    return {"fsdp": True, "fsdp_config": config, "optim": "adamw_torch"}


def run_sharded(output_dir: str, model: PreTrainedModel) -> dict:
    """A step with FSDP2, saved."""
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    arguments = make_arguments(
        output_dir,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        save_strategy="steps",
        **{**shard("FULL_STATE_DICT"), "optim": "sgd"},
    )
    trainer = FDTTrainer(model, arguments, train_dataset=make_rows())
    trainer.train()
    after = {
        name: (parameter.full_tensor() if isinstance(parameter, DTensor) else parameter).detach()
        for name, parameter in trainer.model.named_parameters()
    }
    return {
        "log": trainer.state.log_history,
        "moves": {name: before[name] - after[name] for name in before},
        "after": after,
        "layers": sorted({type(layer).__name__ for layer in trainer.model.modules() if isinstance(layer, FSDPModule)}),
        "num_held": sum(
            (parameter.to_local() if isinstance(parameter, DTensor) else parameter).numel()
            for parameter in trainer.model.parameters()
        ),
    }


def main(folder: str) -> None:
    from tests.declip_run import run_declip  # which imports this module

    dist.init_process_group("gloo")
    rank, world_size = dist.get_rank(), dist.get_world_size()
    torch.set_num_threads(1)
    set_seed(0)
    results = {
        "loss": run_loss(rank, world_size),
        "model": run_model(rank, world_size),
        "uneven": run_uneven(rank),
        "trainer": train(make_model(), f"{folder}/trainer", logging_steps=1),
        "clip": train(make_clip(), f"{folder}/clip"),
        "plain": train(make_model(), f"{folder}/plain", trainer_class=Trainer),
        "accumulated": train(
            make_model(), f"{folder}/accumulated", per_device_train_batch_size=2, gradient_accumulation_steps=2
        ),
        "balanced": train(
            make_model(),
            f"{folder}/balanced",
            per_device_train_batch_size=2,
            gradient_accumulation_steps=2,
            usage_entropy_weight=0.5,
        ),
        "steered": train(make_model(), f"{folder}/steered", max_steps=3, learning_rate=0.1, target_active_codes=4.0),
        "stream": run_stream(f"{folder}/stream"),
        "resumed": run_resumed(f"{folder}/resumed"),
        "resumed_distinct": run_resumed(f"{folder}/resumed_distinct", "kind"),
        "declip": run_declip(f"{folder}/declip"),
        "declip_accumulated": run_declip(
            f"{folder}/declip_accumulated", per_device_train_batch_size=2, gradient_accumulation_steps=2
        ),
        # Last: make_arguments changes what accelerate knows of these processes.
        "sharded": run_sharded(f"{folder}/sharded", make_model()),
        "sharded_clip": run_sharded(f"{folder}/sharded_clip", make_clip()),
        "resumed_full_state": run_resumed(f"{folder}/resumed_full_state", **shard("FULL_STATE_DICT")),
        "resumed_sharded_state": run_resumed(f"{folder}/resumed_sharded_state", **shard("SHARDED_STATE_DICT")),
    }
    torch.save(results, Path(folder) / f"{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1])
