"""Sparsemax and pooled scores: properties, gradients, and the fast implementations against their readable twins."""

import importlib.util
import math

import pytest
import torch

from modeling_fdt import FDTGrounding, grounding, pooled_grounding_scores, sparsemax
from modeling_fdt.grounding import _sparsemax_by_sorting
from tests.conftest import build_tiny_config


FAST = ["chunked"]


# Sparsemax


@pytest.mark.parametrize("size", [1, 2, 17, 1000, 16384])
@pytest.mark.parametrize("spread", [1e-3, 1.0, 100.0])
def test_sparsemax_is_on_the_simplex_and_equals_its_definition(size, spread):
    scores = spread * torch.randn(8, size)
    weights = sparsemax(scores)
    assert (weights >= 0).all()
    # float32 has 24 bits; a row sums up to 16384 weights of at most 1.
    torch.testing.assert_close(weights.sum(dim=-1), torch.ones(8), atol=1e-5, rtol=0)
    torch.testing.assert_close(weights, _sparsemax_by_sorting(scores), atol=1e-6, rtol=0)
    torch.testing.assert_close(sparsemax(scores.double()), _sparsemax_by_sorting(scores.double()), atol=1e-12, rtol=0)


def test_sparsemax_is_the_projection_onto_the_simplex():
    scores = torch.randn(5, 12, dtype=torch.float64)
    weights = sparsemax(scores)
    for _ in range(200):  # no other point of the simplex is nearer
        other = torch.rand(5, 12, dtype=torch.float64).log().neg()
        other = other / other.sum(dim=-1, keepdim=True)
        assert ((scores - weights).norm(dim=-1) <= (scores - other).norm(dim=-1) + 1e-12).all()


def test_sparsemax_equals_entmax():
    entmax = pytest.importorskip("entmax")
    for spread in (0.01, 1.0, 10.0):
        scores = (spread * torch.randn(16, 4096)).requires_grad_()
        target = torch.randn(16, 4096)
        ours, theirs = sparsemax(scores), entmax.sparsemax(scores)
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=0)
        (grad,), (their_grad,) = (torch.autograd.grad((w * target).sum(), scores) for w in (ours, theirs))
        torch.testing.assert_close(grad, their_grad, atol=1e-6, rtol=0)


def test_sparsemax_properties():
    scores = torch.randn(4, 50)
    order = torch.randperm(50)
    torch.testing.assert_close(sparsemax(scores[:, order]), sparsemax(scores)[:, order])
    torch.testing.assert_close(sparsemax(scores + 3), sparsemax(scores), atol=1e-6, rtol=0)
    torch.testing.assert_close(sparsemax(torch.zeros(2, 8)), torch.full((2, 8), 1 / 8))
    one_hot = torch.eye(5) * 1.5  # a lead of more than 1 takes all
    torch.testing.assert_close(sparsemax(one_hot), torch.eye(5))


@pytest.mark.parametrize("dim", [0, 1, 2, -1, -2, -3])
def test_sparsemax_along_any_dimension(dim):
    scores = torch.randn(4, 5, 6)
    expected = sparsemax(scores.movedim(dim, -1)).movedim(-1, dim)
    torch.testing.assert_close(sparsemax(scores, dim=dim), expected)
    torch.testing.assert_close(sparsemax(scores, dim=dim).sum(dim=dim), torch.ones(expected.sum(dim=dim).shape))


def test_sparsemax_of_minus_infinity_is_zero():
    scores = torch.tensor([[0.1, -torch.inf, 0.2], [-torch.inf, -torch.inf, 5.0]], requires_grad=True)
    weights = sparsemax(scores)
    torch.testing.assert_close(weights, torch.tensor([[0.45, 0.0, 0.55], [0.0, 0.0, 1.0]]))
    weights[:, 0].sum().backward()
    torch.testing.assert_close(scores.grad, torch.tensor([[0.5, 0.0, -0.5], [0.0, 0.0, 0.0]]))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_sparsemax_of_half_precision_is_computed_in_float32(dtype):
    scores = torch.randn(3, 2000).to(dtype)
    weights = sparsemax(scores)
    assert weights.dtype == dtype
    torch.testing.assert_close(weights, sparsemax(scores.float()).to(dtype), rtol=0, atol=0)


def test_sparsemax_gradients():
    scores = torch.randn(3, 9, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(sparsemax, scores)
    assert torch.autograd.gradcheck(lambda x: sparsemax(x, dim=0), scores)
    assert torch.autograd.gradgradcheck(sparsemax, scores)


def test_sparsemax_of_a_row_with_nan_is_nan_and_ends():
    assert sparsemax(torch.tensor([[1.0, torch.nan, 2.0]])).isnan().all()


def test_sparsemax_refuses_what_it_cannot_take():
    with pytest.raises(ValueError, match="floating type, got torch.int64"):
        sparsemax(torch.tensor([1, 2]))
    with pytest.raises(ValueError, match=r"an element along `dim` -1, got shape \(3, 0\)"):
        sparsemax(torch.zeros(3, 0))


# Pooled scores


def make_inputs(batch_size=5, num_tokens=7, codebook_size=300, codebook_dim=16, dtype=torch.float32):
    queries = torch.randn(batch_size, num_tokens, codebook_dim, dtype=dtype, requires_grad=True)
    codebook = torch.randn(codebook_size, codebook_dim, dtype=dtype, requires_grad=True)
    mask = torch.arange(num_tokens) < torch.tensor([num_tokens, 1, 0, 3, 2])[:batch_size, None]
    return queries, codebook, mask.long()


@pytest.mark.parametrize("implementation", ["eager", *FAST])
@pytest.mark.parametrize("padded_length", [None, 7, 20])
@pytest.mark.parametrize("pooling", ["max", "mean", "sum"])
def test_pooled_scores_by_hand(implementation, padded_length, pooling):
    queries, codebook, mask = make_inputs()
    pooled = pooled_grounding_scores(
        queries, codebook, mask, token_pooling=pooling, padded_length=padded_length, implementation=implementation
    )
    for row, length in enumerate([7, 1, 0, 3, 2]):
        scores = [codebook @ queries[row, token] / math.sqrt(16) for token in range(length)]
        scores += [torch.zeros(300)] * (max((padded_length or 0) - length, 0) or int(length == 0))
        scores = torch.stack(scores)
        expected = {"max": scores.amax(dim=0), "mean": scores.mean(dim=0), "sum": scores.sum(dim=0)}[pooling]
        torch.testing.assert_close(pooled[row], expected, atol=1e-5, rtol=1e-5)


def run_with_gradients(queries, codebook, mask, implementation, **kwargs):
    queries, codebook = (tensor.detach().clone().requires_grad_() for tensor in (queries, codebook))
    pooled = pooled_grounding_scores(queries, codebook, mask, implementation=implementation, **kwargs)
    weights = sparsemax(pooled)
    # Linear in the weights: the gradient of the scores depends on the support alone, and rounding does not grow.
    (weights @ codebook.detach().to(weights.dtype)).sum().backward()
    return pooled.detach(), queries.grad, codebook.grad


@pytest.mark.parametrize("implementation", FAST)
@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("padded_length", [None, 20])
@pytest.mark.parametrize("pooling", ["max", "mean", "sum"])
@pytest.mark.parametrize("codebook_size", [300, 3000])
def test_fast_equals_eager(implementation, masked, padded_length, pooling, codebook_size, monkeypatch):
    monkeypatch.setattr(grounding, "_CHUNK_NUMEL", 35 * 1024)  # several chunks and a smaller last one
    queries, codebook, mask = make_inputs(codebook_size=codebook_size)
    arguments = {"token_pooling": pooling, "padded_length": padded_length}
    mask = mask if masked else None
    expected = run_with_gradients(queries, codebook, mask, "eager", **arguments)
    result = run_with_gradients(queries, codebook, mask, implementation, **arguments)
    # Sums of float32 in another order: relative to the largest entry.
    for ours, theirs in zip(result, expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5 * theirs.abs().max().item(), rtol=1e-5)


@pytest.mark.parametrize("implementation", FAST)
def test_ties_go_to_the_first_token_in_all_implementations(implementation):
    queries, codebook, _ = make_inputs(batch_size=2)
    queries = queries.detach()
    queries[:, 3] = queries[:, 5] = queries[:, 1]
    queries[1] = 0  # scores of exactly 0, at the floor
    arguments = {"padded_length": 20}
    expected = run_with_gradients(queries, codebook, None, "eager", **arguments)
    result = run_with_gradients(queries, codebook, None, implementation, **arguments)
    for ours, theirs in zip(result, expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-5)
    assert (result[1][0, [3, 5]] == 0).all()


@pytest.mark.parametrize("implementation", FAST)
def test_gradients_of_the_fast_path(implementation):
    queries, codebook, mask = make_inputs(codebook_size=11, dtype=torch.float64)

    def pool(queries, codebook):
        return pooled_grounding_scores(queries, codebook, mask, padded_length=20, implementation=implementation)

    assert torch.autograd.gradcheck(pool, (queries, codebook))


@pytest.mark.parametrize("implementation", FAST)
def test_second_derivatives_are_refused(implementation):
    queries, codebook, _ = make_inputs()
    pooled = pooled_grounding_scores(queries, codebook, implementation=implementation)
    (grad,) = torch.autograd.grad(pooled.square().sum(), queries, create_graph=True)
    with pytest.raises(RuntimeError):
        grad.sum().backward()


@pytest.mark.parametrize("implementation", FAST)
def test_the_fast_path_is_deterministic(implementation):
    queries, codebook, mask = make_inputs(codebook_size=3000)
    first = run_with_gradients(queries, codebook, mask, implementation)
    second = run_with_gradients(queries, codebook, mask, implementation)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("implementation", ["eager", *FAST])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(implementation, dtype):
    queries, codebook, mask = make_inputs()
    expected = run_with_gradients(queries, codebook, mask, "eager")
    result = run_with_gradients(queries.to(dtype), codebook.to(dtype), mask, implementation)
    assert result[0].dtype == torch.float32 and result[1].dtype == result[2].dtype == dtype
    # Scores of products of 8-bit (bfloat16) numbers.
    torch.testing.assert_close(result[0], expected[0], atol=0.05, rtol=0.02)


@pytest.mark.parametrize("implementation", FAST)
def test_autocast_takes_codes_in_the_type_of_the_queries(implementation):
    queries, codebook, mask = make_inputs()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        pooled = pooled_grounding_scores(queries.bfloat16(), codebook, mask, implementation=implementation)
    pooled.sum().backward()
    assert pooled.dtype == codebook.grad.dtype == torch.float32


@pytest.mark.parametrize("implementation", FAST)
def test_compiles_and_passes_the_operator_checks(implementation):
    queries, codebook, mask = make_inputs()
    is_valid = mask.bool()
    is_floored = is_valid.sum(dim=1, keepdim=True) < 20
    torch.library.opcheck(grounding._max_scores, (queries, codebook, is_valid, is_floored))
    torch.library.opcheck(grounding._sparsemax, (torch.randn(3, 20, requires_grad=True),))

    def compute(queries, codebook, mask):
        return sparsemax(pooled_grounding_scores(queries, codebook, mask, implementation=implementation))

    compiled = torch.compile(compute, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(queries, codebook, mask), compute(queries, codebook, mask))


def test_a_second_copy_of_the_module_works_beside_the_first():
    # transformers loads a local folder's code under a name of its own, beside the installed package.
    specification = importlib.util.spec_from_file_location("modeling_fdt.second_copy", grounding.__file__)
    copy = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(copy)
    assert str(copy._sparsemax) != str(grounding._sparsemax)  # one name would leave the first without its operator
    queries, codebook, mask = make_inputs()
    expected = run_with_gradients(queries, codebook, mask, "eager")
    for module in (grounding, copy):
        pooled = module.pooled_grounding_scores(queries, codebook, mask, implementation="chunked")
        torch.testing.assert_close(pooled.detach(), expected[0])
        module.sparsemax(pooled).square().sum().backward()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((torch.zeros(2, 3), torch.zeros(4, 3)), "`queries` must have shape"),
        ((torch.zeros(2, 3, 5), torch.zeros(4, 6)), r"got \(2, 3, 5\) and \(4, 6\)"),
        ((torch.zeros(2, 0, 5), torch.zeros(4, 5)), "at least one token"),
        ((torch.zeros(2, 3, 5), torch.zeros(4, 5), torch.ones(2, 4)), r"`attention_mask` must have shape \(2, 3\)"),
    ],
)
def test_wrong_shapes_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        pooled_grounding_scores(*arguments)


def test_unknown_names_are_refused():
    arguments = (torch.zeros(2, 3, 5), torch.zeros(4, 5))
    with pytest.raises(ValueError, match="`token_pooling` must be .* got 'avg'"):
        pooled_grounding_scores(*arguments, token_pooling="avg")
    with pytest.raises(ValueError, match="`implementation` must be .* got 'fast'"):
        pooled_grounding_scores(*arguments, implementation="fast")


def test_the_grounding_is_exported_in_plain_operations():
    module = FDTGrounding(build_tiny_config(), 32).eval()
    hidden_states, codebook = torch.randn(2, 5, 32), torch.randn(64, 32)
    exported = torch.export.export(module, (hidden_states, codebook))
    assert "fdt" not in str(exported.graph)
    for ours, theirs in zip(exported.module()(hidden_states, codebook), module(hidden_states, codebook), strict=True):
        torch.testing.assert_close(ours, theirs)
