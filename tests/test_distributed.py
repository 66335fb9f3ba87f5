"""Two processes with half the batch each are one process with all of it; no unequal share makes them wait for ever."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils.launch import prepare_multi_gpu_env, prepare_simple_launcher_cmd_env
from transformers import AutoModel, BertConfig, SiglipVisionConfig, Trainer

from modeling_fdt import FDTModel
from modeling_fdt.loss_fdt import contrastive_logits, contrastive_loss
from run_scripts.benchmarks import benchmark_loss
from run_scripts.benchmarks.benchmark_loss import WAYS, LossBenchmarkArguments
from run_scripts.training.reproducible import check_launch
from run_scripts.training.trainer import find_layers_to_shard
from tests.conftest import build_tiny_config
from tests.declip_run import assert_same_run, run_declip
from tests.distributed_process import make_arguments, make_batch, make_clip, make_embeddings, make_model, train
from tests.examples import blocks
from tests.test_run_pretraining import tiny_run


@pytest.fixture(scope="module")
def ranks(tmp_path_factory) -> list[dict]:
    """What every scenario of distributed_process.py gave on each of two processes."""
    folder = tmp_path_factory.mktemp("ranks")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    repository = Path(__file__).parents[1]
    subprocess.run(
        [*command, "-m", "tests.distributed_process", str(folder)],
        check=True,
        cwd=repository,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        timeout=600,  # where a process waits for ever, the test fails
    )
    results = [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]
    return [{**result, "folder": str(folder)} for result in results]


def assert_same_gradients(gradients: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    """float32: sums over 8 instead of 2 x 4 pairs."""
    assert any(gradient.abs().max() > 0.01 for gradient in expected.values())
    for name, gradient in expected.items():
        tolerance = 1e-6 * max(1.0, gradient.abs().max().item())
        torch.testing.assert_close(gradients[name], gradient, atol=tolerance, rtol=1e-4, msg=name)


def test_loss_and_gradients_equal_one_process_with_the_whole_batch(ranks):
    model = make_model().train()
    output = model(**make_batch())
    output.loss.backward()
    expected = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
    for rank, result in enumerate(one["model"] for one in ranks):
        torch.testing.assert_close(result["loss"], output.loss.detach(), atol=1e-6, rtol=0)
        for name in ("logits_per_image", "logits_per_text"):  # of its own images, and of its own captions
            torch.testing.assert_close(result[name], output[name].detach().chunk(2)[rank], atol=1e-5, rtol=0)
        assert_same_gradients(result["gradients"], expected)


def test_each_process_compares_its_own_pairs_and_has_the_whole_gradient_of_the_logit_scale(ranks):
    inputs = make_embeddings()
    logits = contrastive_logits(*inputs)
    loss = contrastive_loss(logits)
    *expected, scale_gradient = torch.autograd.grad(loss, inputs)
    for rank, result in enumerate(rank["loss"] for rank in ranks):
        assert result["logits"][0].shape == (4, 8)
        torch.testing.assert_close(result["logits"], [logits.chunk(2)[rank], logits.T.chunk(2)[rank]])
        *gradients, of_scale = result["gradients"]
        for gradient, whole in zip(gradients, expected, strict=True):  # to be averaged over two processes
            torch.testing.assert_close(gradient / 2, whole.chunk(2)[rank], atol=1e-6, rtol=0)
        torch.testing.assert_close(of_scale, scale_gradient, atol=1e-6, rtol=0)
    assert ranks[0]["loss"]["loss"] == ranks[1]["loss"]["loss"] == pytest.approx(loss.item(), abs=1e-6)


def test_evaluation_on_one_rank_alone(ranks):
    model = make_model().eval()
    local = {name: tensor[:4] for name, tensor in make_batch().items()}
    torch.testing.assert_close(ranks[0]["model"]["evaluation"], model(**local).logits_per_image, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    "scenario", ["trainer", "clip", "plain", "accumulated", "balanced", "sharded", "sharded_clip"]
)
def test_trainers_equal_one_process_with_the_whole_batch(ranks, scenario, tmp_path):
    model = make_clip() if "clip" in scenario else make_model()
    changes = {"plain": {"trainer_class": Trainer}, "balanced": {"usage_entropy_weight": 0.5}}.get(scenario, {})
    expected = train(model, str(tmp_path), per_device_train_batch_size=8, **changes)
    for rank in ranks:
        assert rank[scenario]["log"][0]["loss"] == pytest.approx(expected["log"][0]["loss"], abs=1e-6)
        assert_same_gradients(rank[scenario]["moves"], expected["moves"])


@pytest.mark.parametrize("scenario", ["declip", "declip_accumulated"])
def test_declip_equals_one_process_with_the_whole_batch(ranks, scenario, tmp_path):
    expected = run_declip(str(tmp_path), per_device_train_batch_size=8)
    for rank in ranks:
        assert_same_run(rank[scenario], expected)
    assert torch.equal(ranks[0][scenario]["queue"], ranks[1][scenario]["queue"])  # bit for bit


def test_logged_numbers_are_those_of_all_processes(ranks, tmp_path):
    expected = train(make_model(), str(tmp_path), per_device_train_batch_size=8)["log"][0]
    for rank in ranks:
        log = rank["trainer"]["log"][0]
        assert log["pairs_seen"] == 8
        for name in ("active_codes_per_image", "active_codes_per_caption", "dead_codes"):
            assert log[name] == pytest.approx(expected[name]), name


def test_temperature_is_steered_by_the_images_of_all_processes(ranks, tmp_path):
    changes = {"max_steps": 3, "learning_rate": 0.1, "target_active_codes": 4.0}
    expected = train(make_model(), str(tmp_path), per_device_train_batch_size=8, **changes)["log"][:3]
    logs = [rank["steered"]["log"][:3] for rank in ranks]
    for one, other, whole in zip(*logs, expected, strict=True):
        assert one["temperature"] == other["temperature"] == pytest.approx(whole["temperature"], rel=1e-6)
    assert len({entry["temperature"] for entry in expected}) == 3


def test_uneven_batches_are_refused_by_every_process(ranks):
    for rank in ranks:
        uneven, lacking = rank["uneven"]
        assert "as many pairs on every process, got [4, 3]" in uneven
        assert "as many captions as images, got 3 and 4 on process 1" in lacking


def test_shards_of_different_length_end_together(ranks):
    for rank in ranks:  # the shorter shard has two batches: an epoch has two steps
        steps = [entry["step"] for entry in rank["stream"] if "loss" in entry]
        assert steps == [1, 2, 3]


@pytest.mark.parametrize("scenario", ["resumed", "resumed_distinct", "resumed_full_state", "resumed_sharded_state"])
def test_resumed_run_goes_on_as_the_one_never_stopped(ranks, scenario):
    for rank in ranks:
        whole, resumed = rank[scenario]
        assert len(whole) == 11 and resumed == whole
        assert len(set(whole)) == 11  # noise and order differ from step to step


@pytest.mark.parametrize(
    ("scenario", "make", "own_layers"),
    [("sharded", make_model, ["FDTGrounding", "FDTModel"]), ("sharded_clip", make_clip, ["CLIPModel"])],
)
def test_layers_are_sharded_one_by_one(ranks, scenario, make, own_layers):
    expected = ["CLIPEncoderLayer", "CLIPVisionEmbeddings", "Embedding", *own_layers]
    for rank in ranks:
        assert sorted(name.removeprefix("FSDP") for name in rank[scenario]["layers"]) == sorted(expected)
    # Nothing is held twice but the logit scale.
    assert sum(rank[scenario]["num_held"] for rank in ranks) == make().num_parameters() + 1


def test_layers_to_shard_are_those_that_the_model_has():
    tower = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    config = build_tiny_config(
        vision_config=SiglipVisionConfig(**tower, image_size=32, patch_size=16),
        text_config=BertConfig(**tower, vocab_size=49409, max_position_embeddings=32),
    )
    layers = find_layers_to_shard(FDTModel(config))
    assert {"BertLayer", "SiglipEncoderLayer", "FDTGrounding"} <= set(layers)
    assert "SiglipTextEmbeddings" not in layers  # which SigLIP's vision tower names, and accelerate would refuse


def test_sharded_model_is_saved_whole_with_its_own_class(ranks):
    checkpoint = ranks[0]["folder"] + "/sharded/checkpoint-1"
    loaded = AutoModel.from_pretrained(checkpoint)
    assert type(loaded) is FDTModel and loaded.config.auto_map["AutoModel"] == "modeling_fdt.FDTModel"
    for rank in ranks:
        for name, parameter in loaded.named_parameters():
            torch.testing.assert_close(parameter.detach(), rank["sharded"]["after"][name], atol=0, rtol=0)


@pytest.mark.parametrize("name", ["ddp", "fsdp2"])
def test_accelerate_reads_the_configs(name):
    path = Path(__file__).parents[1] / "run_scripts" / "configs" / "accelerate" / f"{name}.yaml"
    arguments = launch_command_parser().parse_args(["--config_file", str(path), "-m", "module"])
    config = load_config_from_file(str(path))  # refuses unknown names
    assert config.num_processes == 8 and config.mixed_precision == "no"
    arguments, _, _ = _validate_launch_command(arguments)
    assert arguments.use_fsdp == (name == "fsdp2")
    if name == "fsdp2":
        environment = prepare_multi_gpu_env(arguments)
        assert environment["FSDP_VERSION"] == "2" and environment["FSDP_CPU_RAM_EFFICIENT_LOADING"] == "false"


@pytest.mark.parametrize("launcher", [["--cpu"], []])
def test_nodes_that_accelerate_starts_without_each_other_are_refused(launcher, tmp_path, monkeypatch):
    """Of several machines it makes one run only where a config file or a second GPU says that they train together."""
    meeting = ["--num_machines", "2", "--num_processes", "2", "--machine_rank", "1"]
    meeting += ["--main_process_ip", "first-machine", "--main_process_port", "29500"]
    monkeypatch.setattr("accelerate.commands.launch.default_config_file", str(tmp_path / "none.yaml"))
    launch = launch_command_parser().parse_args([*launcher, *meeting, "-m", "module"])
    _validate_launch_command(launch)
    _, environment = prepare_simple_launcher_cmd_env(launch)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match="MASTER_ADDR='first-machine'.*would train alone.*accelerate/ddp.yaml"):
        check_launch(make_arguments(str(tmp_path)))


def test_benchmark_compares_ways_of_one_loss(capsys):
    benchmark_loss.main(LossBenchmarkArguments(num_pairs=8, dim=4, num_steps=1))  # raises if the losses differ
    assert [line.split("|")[1].strip() for line in capsys.readouterr().out.splitlines()[2:]] == list(WAYS)
    with pytest.raises(ValueError, match="num_pairs must be a multiple of 2 processes, got 7"):
        LossBenchmarkArguments(num_pairs=7)


def test_examples_for_clusters_are_parsed_by_their_languages():
    page = Path(__file__).parents[1] / "docs" / "distributed.md"
    for script in blocks(page, "bash"):
        subprocess.run(["bash", "-n"], input=script, text=True, check=True)
    (manifest,) = blocks(page, "yaml")
    service, job = yaml.safe_load_all(manifest)
    pod = job["spec"]["template"]["spec"]
    # The name by which pods find the first one is made of these.
    assert service["metadata"]["name"] == pod["subdomain"] and service["spec"]["selector"] == {"job-name": "fdt"}
    (container,) = pod["containers"]
    assert f"{job['metadata']['name']}-0.{pod['subdomain']}:29500" in container["args"]
    words = container["command"] + container["args"]
    assert all(isinstance(word, str) for word in words)  # Kubernetes refuses numbers here
    assert int(words[words.index("--nnodes") + 1]) == job["spec"]["completions"] == job["spec"]["parallelism"]
    assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}


def read_command(launcher: str, option: str, **values: object) -> list[str]:
    """The page's command of a launcher with this option, as Python runs it here, with other values of some options."""
    page = (Path(__file__).parents[1] / "docs" / "distributed.md").read_text(encoding="utf-8")
    lines = page.replace("\\\n", "").splitlines()
    (command,) = [line.split() for line in lines if line.startswith(launcher) and f"--{option}" in line]
    for name, value in values.items():
        command[command.index(f"--{name}") + 1] = str(value)
    modules = {"torchrun": "torch.distributed.run", "accelerate": "accelerate.commands.accelerate_cli"}
    return [sys.executable, "-m", modules[launcher], *command[1:-1]]


def run_nodes(folder: Path, commands: list[list[str]]) -> list[float]:
    """The losses of a tiny run that these commands start together."""
    run = tiny_run(folder, per_device_train_batch_size=4, save_strategy="steps", save_steps=3)
    (folder / "run.json").write_text(json.dumps(run))
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    nodes = [
        subprocess.Popen([*command, str(folder / "run.json")], cwd=Path(__file__).parents[1], env=environment)
        for command in commands
    ]
    try:
        assert all(node.wait(timeout=300) == 0 for node in nodes)
    finally:
        for node in nodes:
            node.kill()
    state = json.loads((folder / "output" / "checkpoint-3" / "trainer_state.json").read_text())
    log = [entry for entry in state["log_history"] if "loss" in entry]
    assert log[-1]["pairs_seen"] == 24  # 3 steps of 2 x 4: no node trains alone
    return [entry["loss"] for entry in log]


def find_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@pytest.mark.slow
def test_two_nodes_equal_one(tmp_path):
    """The page's commands, once for two processes, and for each of two nodes that meet at an address."""
    endpoint, ip, port = f"127.0.0.1:{find_port()}", "127.0.0.1", find_port()
    node = {"num_machines": 2, "num_processes": 2, "main_process_ip": ip, "main_process_port": port}
    launches = {
        "one": [read_command("torchrun", "standalone", nproc_per_node=2)],
        "torchrun": [read_command("torchrun", "nnodes", nnodes=2, nproc_per_node=1, rdzv_endpoint=endpoint)] * 2,
        "accelerate": [read_command("accelerate", "num_machines", machine_rank=rank, **node) for rank in range(2)],
    }
    losses = {name: run_nodes(tmp_path / name, commands) for name, commands in launches.items()}
    assert len(losses["one"]) == 3 and losses["torchrun"] == losses["accelerate"] == losses["one"]
