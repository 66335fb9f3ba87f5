"""
The CUDA kernels against their plain torch twins: without a GPU in triton's interpreter, with one for real.

The interpreter has to be chosen before triton is imported, so its tests run in a process of their own, which
`test_the_kernels_in_the_interpreter` starts; to run them by hand, set TRITON_INTERPRET=1.
"""

import os
import subprocess
import sys
from types import SimpleNamespace
from xml.etree import ElementTree

import numpy as np
import pytest
import torch

from modeling_fdt import FDTModel, grounding, pooled_grounding_scores, sparsemax
from modeling_fdt.grounding import _sparsemax_by_sorting
from tests.conftest import build_tiny_config
from tests.test_grounding import make_inputs, run_with_gradients


triton = pytest.importorskip("triton")

from modeling_fdt import grounding_triton  # noqa: E402


IS_INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
interpreted = pytest.mark.skipif(not IS_INTERPRETED, reason="needs TRITON_INTERPRET=1")
compiled = pytest.mark.skipif(IS_INTERPRETED, reason="needs triton's compiler, not its interpreter")


def on_gpu(test):
    is_skipped = IS_INTERPRETED or not torch.cuda.is_available()
    return pytest.mark.gpu(pytest.mark.skipif(is_skipped, reason="needs a CUDA device")(test))


def assert_close_to_the_largest(ours, theirs, tolerance):
    for our, their in zip(ours, theirs, strict=True):
        torch.testing.assert_close(our, their, atol=tolerance * their.abs().max().item(), rtol=tolerance)


@compiled
@pytest.mark.slow
def test_the_kernels_in_the_interpreter(tmp_path):
    report = tmp_path / "report.xml"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junit-xml={report}", __file__]
    result = subprocess.run(
        command, env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True, text=True, timeout=600
    )
    assert result.returncode == 0, result.stdout + result.stderr
    counts = ElementTree.parse(report).find("testsuite").attrib
    assert int(counts["tests"]) > int(counts["skipped"])


# In the interpreter


@pytest.fixture
def small_tiles(monkeypatch):
    """One tile smaller than the shapes under test, and what the interpreter cannot do or does number by number."""
    import triton.language as tl
    from triton.runtime import interpreter

    tile = triton.Config({"BLOCK_CODES": 32, "BLOCK_COLUMNS": 64})
    monkeypatch.setattr(grounding_triton._max_scores_kernel, "configs", [tile])
    monkeypatch.setattr(
        interpreter.ReduceOps, "generic_reduce", lambda self, input: self.min_max(input[0], val_reduce_op=np.max)
    )

    def to_float32(operand):  # bfloat16 is held as its 16 bits, which the interpreter would multiply as integers
        return (
            (operand.data.astype(np.uint32) << 16).view(np.float32) if operand.dtype == tl.bfloat16 else operand.data
        )

    def create_dot(self, a, b, total, *precision):
        product = np.matmul(to_float32(a), to_float32(b), dtype=np.float32)
        return interpreter.TensorHandle(product + total.data, total.dtype.scalar)

    monkeypatch.setattr(interpreter.InterpreterBuilder, "create_dot", create_dot)


SHAPES = [  # batch_size, num_tokens, codebook_size, codebook_dim
    (3, 49, 100, 64),
    (2, 77, 70, 48),
    (2, 196, 64, 32),
    (40, 5, 70, 16),  # more rows than a tile has
    (1, 3, 17, 512),
]


def make_ragged_mask(batch_size, num_tokens):
    """Valid tokens anywhere; the last row has none."""
    mask = torch.rand(batch_size, num_tokens) > 0.3
    mask[-1] = False
    return mask


@interpreted
@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
def test_scores_and_gradients_equal_eager(shape, masked, small_tiles):
    batch_size, num_tokens, codebook_size, codebook_dim = shape
    queries = torch.randn(batch_size, num_tokens, codebook_dim)
    codebook = torch.randn(codebook_size, codebook_dim)
    mask = make_ragged_mask(batch_size, num_tokens) if masked else None
    for padded_length in (None, num_tokens):
        arguments = {"padded_length": padded_length}
        expected = run_with_gradients(queries, codebook, mask, "eager", **arguments)
        result = run_with_gradients(queries, codebook, mask, "triton", **arguments)
        assert_close_to_the_largest(result, expected, 1e-5)  # sums of float32 in another order


@interpreted
@pytest.mark.parametrize("pooling", ["max", "mean", "sum"])
@pytest.mark.parametrize("padded_length", [None, 7, 20])
def test_every_pooling_equals_eager(pooling, padded_length, small_tiles):
    queries, codebook, mask = make_inputs()
    arguments = {"token_pooling": pooling, "padded_length": padded_length}
    expected = run_with_gradients(queries, codebook, mask, "eager", **arguments)
    result = run_with_gradients(queries, codebook, mask, "triton", **arguments)
    assert_close_to_the_largest(result, expected, 1e-5)


@interpreted
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_summed_in_float32(dtype, small_tiles):
    queries, codebook, mask = make_inputs(num_tokens=7, codebook_dim=64)  # sqrt(64) = 8 loses no bit
    queries, codebook = queries.to(dtype), codebook.to(dtype)
    expected = run_with_gradients(queries.float(), codebook.float(), mask, "eager", padded_length=7)
    result = run_with_gradients(queries, codebook, mask, "triton", padded_length=7)
    assert result[0].dtype == torch.float32 and result[1].dtype == result[2].dtype == dtype
    torch.testing.assert_close(result[0], expected[0], atol=1e-5, rtol=1e-5)
    # Gradients are rounded once, at the end.
    gradients = (gradient.float() for gradient in result[1:])
    assert_close_to_the_largest(gradients, expected[1:], torch.finfo(dtype).eps)


@interpreted
def test_gradients_that_vanish_in_half_precision_count():
    queries, codebook = 1000 * torch.randn(3, 5, 32).half(), 1000 * torch.randn(20, 32).half()
    grad, winners = torch.full((3, 20), 1e-8), torch.randint(0, 5, (3, 20), dtype=torch.int32)
    expected = grounding._max_scores_backward(grad, queries, codebook, winners, "chunked")
    result = grounding._max_scores_backward(grad, queries, codebook, winners, "triton")
    assert all(gradient.any() for gradient in expected)
    for ours, theirs in zip(result, expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-7, rtol=0)  # the distance of the smallest numbers


@interpreted
def test_winners_floors_and_ties(small_tiles):
    # Small integers: every score is exact, and many are equal or 0.
    queries = torch.randint(-1, 2, (6, 9, 16)).float()
    codebook = torch.randint(-1, 2, (50, 16)).float()
    is_valid = make_ragged_mask(6, 9)
    for is_floored in (is_valid.sum(dim=1, keepdim=True) < 9, ~is_valid.any(dim=1, keepdim=True)):
        expected = grounding._max_scores(queries, codebook, is_valid, is_floored)
        result = grounding._max_scores(queries, codebook, is_valid, is_floored, "triton")
        assert all(torch.equal(ours, theirs) for ours, theirs in zip(result, expected, strict=True))
        assert is_floored.sum() == 0 or (result[1] == -1).any()


@interpreted
def test_padding_is_never_read_and_nan_is_kept(monkeypatch):
    tile = triton.Config({"BLOCK_CODES": 16, "BLOCK_COLUMNS": 16})
    monkeypatch.setattr(grounding_triton._max_scores_kernel, "configs", [tile])
    queries, codebook, mask = make_inputs(batch_size=4, codebook_size=16)
    with torch.no_grad():
        queries[~mask.bool()] = torch.nan
    expected = pooled_grounding_scores(queries, codebook, mask, implementation="eager")
    torch.testing.assert_close(pooled_grounding_scores(queries, codebook, mask, implementation="triton"), expected)
    with torch.no_grad():
        queries[0, 1] = queries[3, 2] = torch.nan
    pooled = pooled_grounding_scores(queries, codebook, mask, implementation="triton")
    assert pooled[[0, 3]].isnan().all() and pooled[[1, 2]].isfinite().all()


@interpreted
@pytest.mark.parametrize("density", [0.0, 0.02, 1.0])
def test_the_backward_pass_for_any_support(density):
    queries, codebook = torch.randn(5, 70, 40), torch.randn(130, 40)
    grad = torch.randn(5, 130) * (torch.rand(5, 130) < density)
    winners = torch.randint(-1, 70, (5, 130), dtype=torch.int32)
    expected = grounding._max_scores_backward(grad, queries, codebook, winners, "chunked")
    result = grounding._max_scores_backward(grad, queries, codebook, winners, "triton")
    for ours, theirs in zip(result, expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-5)  # sums of up to 130 products


@interpreted
def test_tensors_need_not_be_contiguous(small_tiles):
    queries, codebook, mask = make_inputs()
    expected = run_with_gradients(queries, codebook, mask, "eager")
    scattered = queries.detach().transpose(0, 1).contiguous().transpose(0, 1), codebook.detach().T.contiguous().T
    assert_close_to_the_largest(run_with_gradients(*scattered, mask, "triton"), expected, 1e-5)


@interpreted
@pytest.mark.parametrize("size", [1, 2, 17, 1000, 16384, 65536])
@pytest.mark.parametrize("spread", [1e-3, 1.0, 100.0])
def test_sparsemax_equals_its_definition(size, spread):
    scores = spread * torch.randn(3, size)
    weights = grounding_triton.sparsemax(scores)
    torch.testing.assert_close(weights, _sparsemax_by_sorting(scores), atol=1e-6, rtol=0)
    torch.testing.assert_close(weights.sum(dim=1), torch.ones(3), atol=1e-5, rtol=0)


@interpreted
def test_sparsemax_of_special_rows():
    rows = torch.tensor([[0.1, -torch.inf, 0.2], [-torch.inf, -torch.inf, 5.0], [1.0, torch.nan, 2.0], [3.0] * 3])
    expected = torch.tensor([[0.45, 0.0, 0.55], [0.0, 0.0, 1.0], [torch.nan] * 3, [1 / 3] * 3])
    torch.testing.assert_close(grounding_triton.sparsemax(rows), expected, equal_nan=True)
    assert grounding_triton.sparsemax(torch.full((1, 5), torch.inf)).isnan().all()


@interpreted
def test_the_operator_checks(small_tiles):
    queries, codebook, mask = make_inputs(codebook_size=40)
    is_valid = mask.bool()
    is_floored = is_valid.sum(dim=1, keepdim=True) < 20
    torch.library.opcheck(grounding._max_scores, (queries, codebook, is_valid, is_floored, "triton"))


# Without a GPU, compiled


@compiled
@pytest.mark.skipif(torch.cuda.is_available(), reason="the tests below say more")
def test_triton_without_a_cuda_tensor_is_refused():
    queries, codebook, _ = make_inputs()
    with pytest.raises(ValueError, match="must be on a CUDA device for triton, got cpu"):
        pooled_grounding_scores(queries, codebook, implementation="triton")
    with pytest.raises(ValueError, match="must be bfloat16, float16 or float32 for triton, got torch.float64"):
        pooled_grounding_scores(queries.double(), codebook, implementation="triton")


@compiled
@pytest.mark.parametrize(
    ("dtype", "precision", "hip", "major", "expected"),
    [
        (torch.bfloat16, "none", None, 8, "triton"),
        (torch.float16, "none", None, 9, "triton"),
        (torch.bfloat16, "none", None, 7, "chunked"),
        (torch.bfloat16, "none", "6.2", 9, "chunked"),
        (torch.float32, "none", None, 9, "chunked"),
        (torch.float32, "ieee", None, 9, "chunked"),
        (torch.float32, "tf32", None, 9, "triton"),
        (torch.float64, "tf32", None, 9, "chunked"),
    ],
)
def test_auto_takes_the_kernels_where_they_are_made_for(dtype, precision, hip, major, expected, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(major=major))
    monkeypatch.setattr(torch.version, "hip", hip)
    monkeypatch.setattr(torch.backends.cuda, "matmul", SimpleNamespace(fp32_precision=precision))
    tensor = SimpleNamespace(dtype=dtype, is_cuda=True, device="cuda")
    assert grounding._choose_implementation(tensor) == expected
    assert grounding._choose_implementation(torch.ones(1, dtype=dtype)) == "chunked"


@compiled
def test_tiles_are_timed_for_full_blocks_of_rows_alone(monkeypatch):
    kernel = grounding_triton._max_scores_kernel
    monkeypatch.setattr(kernel, "nargs", {}, raising=False)
    num_tiles = {rows: len(kernel.prune_configs({"BLOCK_ROWS": rows})) for rows in (1, 16, 32)}
    assert num_tiles == {1: 1, 16: 1, 32: len(grounding_triton._TILES)}


@pytest.fixture
def compile_kernel(tmp_path, monkeypatch):
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    monkeypatch.setattr(triton.knobs.cache, "dir", str(tmp_path))

    def compile_kernel(kernel, capability, num_warps, types, **constants):
        types = dict(zip(kernel.arg_names, types.split(), strict=False))
        signature = {name: types.get(name, "constexpr") for name in kernel.arg_names}
        aligned = {(index,): [["tt.divisibility", 16]] for index in range(len(types))}
        source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=aligned)
        options = {"num_warps": num_warps, "num_stages": 3}
        return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options).asm["ptx"]

    return compile_kernel


# Tensor cores, by compute capability.
MATRIX_PRODUCTS = {80: "mma.sync", 90: "wgmma"}


@compiled
@pytest.mark.slow
@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize(
    ("dtype", "precision", "block_rows"),
    [("bf16", "ieee", 32), ("fp16", "ieee", 1), ("fp32", "tf32", 8), ("fp32", "ieee", 1)],
)
def test_the_forward_kernel_compiles(dtype, precision, block_rows, capability, compile_kernel):
    tile = grounding_triton._select_tiles(grounding_triton._TILES, {}, block_rows)[0]
    forward = compile_kernel(
        grounding_triton._max_scores_kernel.fn,
        capability,
        tile.num_warps,
        f"*{dtype} *{dtype} *i64 *i32 *i64 *i1 *fp32 *i32 i32 i32 i32",
        CODEBOOK_DIM=512,
        INPUT_PRECISION=precision,
        **tile.kwargs,
        BLOCK_ROWS=block_rows,
        BLOCK_DIM=32 if dtype == "fp32" else 64,
    )
    has_tensor_cores = dtype != "fp32" or precision == "tf32"
    assert any(product in forward for product in MATRIX_PRODUCTS.values()) == has_tensor_cores
    if dtype == "bf16" and block_rows == 32:
        # Those of this generation, and no maximum that leaves the registers of its thread.
        assert MATRIX_PRODUCTS[capability] in forward
        assert "max.NaN.f32" in forward and "shfl.sync.bfly" not in forward


@compiled
@pytest.mark.slow
@pytest.mark.parametrize("capability", [80, 90])
def test_the_other_kernels_compile(capability, compile_kernel):
    for is_by_code in (False, True):
        group = {"GROUP_CODES": 64 if is_by_code else 16384, "IS_BY_CODE": is_by_code}
        types = "*fp32 *i32 *i32 *i32 i32 i32"
        compile_kernel(grounding_triton._list_entries_kernel, capability, 4, types, **group, BLOCK_SIZE=2048)
        for dtype in ("bf16", "fp16", "fp32"):
            backward = compile_kernel(
                grounding_triton._sum_entries_kernel,
                capability,
                grounding_triton._SUM_WARPS,
                f"*fp32 *i32 *i32 *i32 *{dtype} *{dtype} i32 i32 i32 i32 i32",
                **group,
                CODEBOOK_DIM=512,
                BLOCK_TARGETS=64,
                BLOCK_ENTRIES=32,
                BLOCK_DIM=128,
            )
            assert any(product in backward for product in MATRIX_PRODUCTS.values()) and "atom" not in backward
    compile_kernel(grounding_triton._sparsemax_kernel, capability, 16, "*fp32 *fp32 i32", BLOCK_SIZE=16384)


# On a GPU


def make_gpu_inputs(batch_size, num_tokens, codebook_size, codebook_dim, dtype=torch.float32):
    queries = torch.randn(batch_size, num_tokens, codebook_dim, device="cuda").to(dtype)
    return queries, torch.randn(codebook_size, codebook_dim, device="cuda").to(dtype)


@on_gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("shape", [*SHAPES, (64, 49, 4000, 256), (32, 196, 2048, 64), (64, 77, 2048, 64)])
def test_equals_eager_on_the_gpu(shape, masked, dtype):
    queries, codebook = make_gpu_inputs(*shape, dtype)
    is_valid = make_ragged_mask(*shape[:2]).cuda() if masked else torch.ones(shape[:2], dtype=bool, device="cuda")
    is_floored = ~is_valid.all(dim=1, keepdim=True)
    pooled, winners = grounding._max_scores(queries, codebook, is_valid, is_floored, "triton")
    expected, _ = grounding._max_scores(queries.float(), codebook.float(), is_valid, is_floored, "chunked")
    # Tensor cores align the products of half precision before they add them up.
    assert_close_to_the_largest([pooled], [expected], 1e-5 if dtype == torch.float32 else 1e-4)
    grad = torch.randn_like(pooled) * (torch.rand_like(pooled) < 0.01)
    result = grounding._max_scores_backward(grad, queries, codebook, winners, "triton")
    expected = grounding._max_scores_backward(grad, queries.float(), codebook.float(), winners, "chunked")
    tolerance = 1e-5 if dtype == torch.float32 else torch.finfo(dtype).eps  # rounded once, at the end
    assert_close_to_the_largest([gradient.float() for gradient in result], expected, tolerance)


@on_gpu
def test_the_gpu_chooses_the_kernels_and_equals_the_cpu(monkeypatch):
    queries, codebook = make_gpu_inputs(8, 49, 1000, 64, torch.float16)
    mask = make_ragged_mask(8, 49).cuda()
    expected = run_with_gradients(queries.cpu().float(), codebook.cpu().float(), mask.cpu(), "eager", padded_length=49)
    calls = []

    def record_calls(name):
        function = getattr(grounding_triton, name)
        monkeypatch.setattr(grounding_triton, name, lambda *arguments: calls.append(name) or function(*arguments))

    for name in ("max_scores", "sparsemax", "max_scores_backward"):
        record_calls(name)
    result = run_with_gradients(queries, codebook, mask, "auto", padded_length=49)
    assert calls == ["max_scores", "sparsemax", "max_scores_backward"]
    assert_close_to_the_largest([tensor.cpu().float() for tensor in result], expected, 4 * torch.finfo(torch.half).eps)


@on_gpu
def test_ties_go_to_the_first_token_on_the_gpu():
    queries, codebook = make_gpu_inputs(4, 49, 500, 64, torch.bfloat16)
    queries[:, 30] = queries[:, 48] = queries[:, 2]
    valid = torch.ones(4, 49, dtype=torch.bool, device="cuda")
    _, winners = grounding._max_scores(queries, codebook, valid, valid.new_zeros(4, 1), "triton")
    assert (winners == 2).any() and not ((winners == 30) | (winners == 48)).any()


@on_gpu
@pytest.mark.parametrize("size", [1, 17, 1000, 16384, 65536, 65537])
@pytest.mark.parametrize("spread", [1e-3, 1.0, 100.0])
def test_sparsemax_equals_its_definition_on_the_gpu(size, spread):
    scores = spread * torch.randn(64, size, device="cuda")
    torch.testing.assert_close(sparsemax(scores), _sparsemax_by_sorting(scores.double()).float(), atol=1e-6, rtol=0)
    scores[0, 0] = torch.nan
    assert sparsemax(scores)[0].isnan().all()


@on_gpu
def test_memory_is_a_tenth_of_eager():
    queries, codebook = make_gpu_inputs(256, 49, 16384, 512, torch.bfloat16)
    grad = torch.randn(256, 16384, device="cuda") * (torch.rand(256, 16384, device="cuda") < 0.005)
    queries.requires_grad_()
    codebook.requires_grad_()

    def measure(implementation):
        for _ in range(2):  # tiles are timed at the first call
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            pooled = pooled_grounding_scores(queries, codebook, implementation=implementation)
            torch.autograd.grad(pooled, (queries, codebook), grad)
            del pooled
        return torch.cuda.max_memory_allocated() - before

    assert measure("triton") < measure("eager") / 10


@on_gpu
def test_the_kernels_are_deterministic():
    queries, codebook = make_gpu_inputs(64, 49, 4096, 64, torch.bfloat16)
    first = run_with_gradients(queries, codebook, None, "triton")
    for _ in range(5):
        again = run_with_gradients(queries, codebook, None, "triton")
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


@on_gpu
def test_the_gpu_path_never_waits_for_the_device():
    queries, codebook = make_gpu_inputs(8, 49, 1000, 64)
    run_with_gradients(queries, codebook, None, "triton")  # tiles are timed at the first call
    queries.requires_grad_()
    torch.cuda.set_sync_debug_mode("error")
    try:
        sparsemax(pooled_grounding_scores(queries, codebook, implementation="triton")).square().sum().backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@on_gpu
@pytest.mark.parametrize("implementation", ["auto", "triton"])
def test_compiles_on_the_gpu(implementation):
    queries, codebook = make_gpu_inputs(8, 49, 1000, 64, torch.bfloat16)
    mask = make_ragged_mask(8, 49).cuda()
    queries.requires_grad_()

    def compute(queries, codebook, mask):
        return sparsemax(pooled_grounding_scores(queries, codebook, mask, implementation=implementation))

    result, expected = (
        function(queries, codebook, mask) for function in (torch.compile(compute, fullgraph=True), compute)
    )
    torch.testing.assert_close(result, expected)
    gradients = (torch.autograd.grad(weights.square().sum(), queries)[0] for weights in (result, expected))
    torch.testing.assert_close(*gradients)


@on_gpu
def test_a_model_trains_under_autocast():
    model = FDTModel(build_tiny_config()).cuda()
    pixel_values = torch.randn(4, 3, 32, 32, device="cuda")
    input_ids = torch.tensor([[49407, 5, 49408, 0], [49407, 5, 6, 49408]] * 2, device="cuda")
    losses = []
    for is_half in (False, True):
        with torch.autocast("cuda", dtype=torch.bfloat16, enabled=is_half):
            outputs = model(
                input_ids=input_ids, pixel_values=pixel_values, attention_mask=input_ids != 0, return_loss=True
            )
        model.zero_grad()
        outputs.loss.backward()
        assert all(parameter.grad.isfinite().all() for parameter in model.parameters() if parameter.grad is not None)
        losses.append(outputs.loss.item())
    assert abs(losses[0] - losses[1]) < 0.1  # bfloat16 has 8 bits
