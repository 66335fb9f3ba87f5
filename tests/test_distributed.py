"""The loss over the global batch: two processes with half the batch each are one process with all of it."""

import os
import socket

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.nn.parallel import DistributedDataParallel

from modeling_fdt import FDTModel
from tests.conftest import build_tiny_config


def make_batch() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    lengths = torch.tensor([9, 4, 7, 5, 3, 9, 6, 2])
    return {
        "pixel_values": torch.randn(8, 3, 32, 32, generator=generator),
        "input_ids": torch.randint(5, 49000, (8, 9), generator=generator),
        "attention_mask": (torch.arange(9) < lengths[:, None]).long(),
    }


def make_model() -> FDTModel:
    torch.manual_seed(0)
    return FDTModel(build_tiny_config())


def run_rank(rank: int, world_size: int, port: int, folder: str) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=world_size)
    model = make_model()
    local = {name: tensor.chunk(world_size)[rank] for name, tensor in make_batch().items()}

    wrapped = DistributedDataParallel(model.train())  # find_unused_parameters=False: every parameter must be used
    output = wrapped(**local)
    output.loss.backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    result = {"loss": output.loss.detach(), "logits": output.logits_per_image.detach(), "gradients": gradients}
    wrapped(**local).loss.backward()  # a second step stops here if the first left a parameter without a gradient

    # Evaluation makes no collective call: one rank alone would hang in one.
    if rank == 0:
        result["evaluation"] = model.eval()(**local).logits_per_image.detach()
    torch.save(result, f"{folder}/{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory) -> list[dict]:
    folder = tmp_path_factory.mktemp("ranks")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    mp.spawn(run_rank, args=(2, port, str(folder)), nprocs=2)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


def test_loss_and_gradients_equal_one_process_with_the_whole_batch(ranks):
    model = make_model().train()
    output = model(**make_batch())
    output.loss.backward()
    for rank in ranks:
        # float32: sums over 8 instead of 2 x 4 pairs.
        torch.testing.assert_close(rank["loss"], output.loss.detach(), atol=1e-6, rtol=0)
        torch.testing.assert_close(rank["logits"], output.logits_per_image.detach(), atol=1e-5, rtol=0)
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                expected = parameter.grad
                tolerance = 1e-6 * max(1.0, expected.abs().max().item())
                torch.testing.assert_close(rank["gradients"][name], expected, atol=tolerance, rtol=1e-4, msg=name)


def test_evaluation_on_one_rank_alone(ranks):
    model = make_model().eval()
    local = {name: tensor[:4] for name, tensor in make_batch().items()}
    torch.testing.assert_close(ranks[0]["evaluation"], model(**local).logits_per_image, atol=1e-5, rtol=0)
