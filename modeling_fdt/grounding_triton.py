# Copyright 2026 The FDT for transformers authors. Licensed under the Apache License, Version 2.0.
"""
The kernels behind `grounding.py` on CUDA devices: largest scores, their gradient, and sparsemax.

Each of the three public functions is the body of one custom operator of `grounding.py` and equals its plain torch twin
there. Nothing adds up by atomics or depends on the order in which programs run, and nothing waits for the device but
the first call for a codebook, which times the tiles it can choose from.
"""

try:
    import triton
    import triton.language as tl
except ImportError as error:  # guarded, so that transformers' loader of remote code does not ask for triton
    raise ImportError("`implementation='triton'` needs the package triton.") from error

import torch


# How a tile of scores is used, with BLOCK_ROWS = 32 rows of the batch. A tile is BLOCK_CODES x BLOCK_COLUMNS, and its
# columns are BLOCK_TOKENS = BLOCK_COLUMNS / BLOCK_ROWS tokens of each of the rows. A row therefore pads to a multiple
# of 4 tokens (128 columns) or 8 (256 columns), the batch to one of 32 (below that to a power of 2), and what is
# computed in vain for the tokens is
#
#     tokens    128 columns     256 columns     one row per 64 columns
#         49    52:  6 %        56: 13 %        64: 23 %
#         77    80:  4 %        80:  4 %        128: 40 %
#        196    196: 0 %        200: 2 %        256: 23 %
#
# Column c holds row c % BLOCK_ROWS. A thread of a tensor core's accumulator holds columns 2i, 2i + 1, 2i + 8, 2i + 9
# and so on, all tokens of its rows: it takes their maximum within its own registers.
_TILES = [
    triton.Config({"BLOCK_CODES": 128, "BLOCK_COLUMNS": 256}, num_warps=8, num_stages=3),
    triton.Config({"BLOCK_CODES": 128, "BLOCK_COLUMNS": 128}, num_warps=8, num_stages=3),
    triton.Config({"BLOCK_CODES": 64, "BLOCK_COLUMNS": 128}, num_warps=4, num_stages=3),
    triton.Config({"BLOCK_CODES": 64, "BLOCK_COLUMNS": 64}, num_warps=4, num_stages=3),
]


def max_scores(
    queries: torch.Tensor, codebook: torch.Tensor, is_valid: torch.Tensor, is_floored: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    r"""
    The largest score of every code over a row's valid tokens, and the token it came from: a matrix product whose tiles
    are reduced where they are made.

    Args:
        queries (`torch.Tensor` of shape `(batch_size, num_tokens, codebook_dim)`): bfloat16, float16 or float32.
        codebook (`torch.Tensor` of shape `(codebook_size, codebook_dim)`): of the type of the queries.
        is_valid (`torch.Tensor` of shape `(batch_size, num_tokens)`): bool; other tokens neither cost nor count.
        is_floored (`torch.Tensor` of shape `(batch_size, 1)`): bool, whether a token of score 0 takes part. It must
            be True for rows without a valid token.

    Returns:
        The scores, float32, and the first token that has them, int32, -1 where 0 is larger; both of shape
        `(batch_size, codebook_size)`. A NaN score makes the largest NaN.

    Raises:
        ValueError: the queries are of another type, or not on a CUDA device.
    """
    if queries.dtype not in (torch.bfloat16, torch.float16, torch.float32):
        raise ValueError(f"`queries` must be bfloat16, float16 or float32 for triton, got {queries.dtype}.")
    if not (queries.is_cuda or triton.knobs.runtime.interpret):
        raise ValueError(f"`queries` must be on a CUDA device for triton, got {queries.device}.")
    batch_size, num_tokens, codebook_dim = queries.shape
    codebook_size = len(codebook)
    pooled = queries.new_empty(batch_size, codebook_size, dtype=torch.float32)
    winners = torch.empty_like(pooled, dtype=torch.int32)
    # Valid tokens first, and rows of like length side by side: a tile's rows end together.
    tokens = is_valid.to(torch.uint8).argsort(dim=1, descending=True, stable=True)
    lengths = is_valid.sum(dim=1, dtype=torch.int32)
    rows = lengths.argsort(descending=True, stable=True)
    block_rows = min(triton.next_power_of_2(batch_size), 32)
    num_row_blocks = triton.cdiv(batch_size, block_rows)
    with torch.cuda.device_of(queries):
        _max_scores_kernel[lambda tile: (triton.cdiv(codebook_size, tile["BLOCK_CODES"]), num_row_blocks)](
            queries.contiguous(),
            codebook.contiguous(),
            rows,
            lengths,
            tokens,
            is_floored.contiguous(),
            pooled,
            winners,
            batch_size,
            num_tokens,
            codebook_size,
            CODEBOOK_DIM=codebook_dim,
            INPUT_PRECISION=_input_precision(),
            BLOCK_ROWS=block_rows,
            BLOCK_DIM=128 // queries.element_size(),
        )
    return pooled, winners


def _input_precision() -> str:
    """How float32 is multiplied: as torch's own matrix products are told to."""
    return "tf32" if torch.backends.cuda.matmul.fp32_precision == "tf32" else "ieee"


def _select_tiles(tiles: list[triton.Config], arguments: dict, BLOCK_ROWS: int, **constants) -> list[triton.Config]:
    """The tiles to time. Few rows, such as a short last batch, are not worth it and take the smallest."""
    return tiles if BLOCK_ROWS == 32 else tiles[-1:]


@triton.autotune(
    configs=_TILES,
    key=["codebook_size", "CODEBOOK_DIM", "INPUT_PRECISION", "BLOCK_ROWS"],
    prune_configs_by={"early_config_prune": _select_tiles},
)
@triton.jit(do_not_specialize=["batch_size", "num_tokens"])  # the longest caption changes with the batch
def _max_scores_kernel(
    queries,
    codebook,
    rows,
    lengths,
    tokens,
    is_floored,
    pooled,
    winners,
    batch_size,
    num_tokens,
    codebook_size,
    CODEBOOK_DIM: tl.constexpr,
    INPUT_PRECISION: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_CODES: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
):
    BLOCK_TOKENS: tl.constexpr = BLOCK_COLUMNS // BLOCK_ROWS
    dims = tl.arange(0, BLOCK_DIM)
    slots = tl.arange(0, BLOCK_TOKENS)
    columns = tl.arange(0, BLOCK_COLUMNS)
    codes = tl.program_id(0) * BLOCK_CODES + tl.arange(0, BLOCK_CODES)
    code_vectors = codebook + (codes % codebook_size).to(tl.int64) * CODEBOOK_DIM

    first = tl.program_id(1) * BLOCK_ROWS
    is_row = first + tl.arange(0, BLOCK_ROWS) < batch_size
    row = tl.load(rows + first + tl.arange(0, BLOCK_ROWS), mask=is_row, other=0)
    length = tl.load(lengths + row, mask=is_row, other=0)
    column_row = tl.load(rows + (first + columns % BLOCK_ROWS) % batch_size)
    column_length = tl.load(lengths + column_row)

    best = tl.full((BLOCK_CODES, BLOCK_ROWS), float("-inf"), tl.float32)
    winner = tl.zeros((BLOCK_CODES, BLOCK_ROWS), tl.int32)
    for start in range(0, tl.max(length), BLOCK_TOKENS):
        # Past its end a row repeats its last token, which changes no maximum: no score needs a mask.
        slot = tl.maximum(tl.minimum(start + columns // BLOCK_ROWS, column_length - 1), 0)
        token = tl.load(tokens + column_row * num_tokens + slot)
        query_vectors = queries + (column_row * num_tokens + token) * CODEBOOK_DIM
        scores = tl.zeros((BLOCK_CODES, BLOCK_COLUMNS), tl.float32)
        for dim in range(0, CODEBOOK_DIM, BLOCK_DIM):
            if CODEBOOK_DIM % BLOCK_DIM == 0:
                code_tile = tl.load(code_vectors[:, None] + (dim + dims)[None, :])
                query_tile = tl.load(query_vectors[None, :] + (dim + dims)[:, None])
            else:
                is_dim = dim + dims < CODEBOOK_DIM
                code_tile = tl.load(code_vectors[:, None] + (dim + dims)[None, :], mask=is_dim[None, :], other=0)
                query_tile = tl.load(query_vectors[None, :] + (dim + dims)[:, None], mask=is_dim[:, None], other=0)
            scores = tl.dot(code_tile, query_tile, scores, input_precision=INPUT_PRECISION)
        scores = tl.reshape(scores, (BLOCK_CODES, BLOCK_TOKENS, BLOCK_ROWS))
        largest = tl.reduce(scores, 1, _maximum)
        is_largest = scores == largest[:, None, :]
        first_largest = tl.min(tl.where(is_largest, slots[None, :, None], BLOCK_TOKENS), axis=1)
        winner = tl.where(largest > best, start + first_largest, winner)
        best = _maximum(best, largest)

    best = tl.where(length[None, :] > 0, best, float("-inf"))
    slot = tl.maximum(tl.minimum(winner, length[None, :] - 1), 0)
    token = tl.load(tokens + (row * num_tokens)[None, :] + slot).to(tl.int32)
    loses_to_zero = tl.load(is_floored + row)[None, :] & (best < 0)
    places = (row * codebook_size)[None, :] + codes[:, None]
    is_place = is_row[None, :] & (codes < codebook_size)[:, None]
    tl.store(pooled + places, tl.where(loses_to_zero, 0.0, best), mask=is_place)
    tl.store(winners + places, tl.where(loses_to_zero, -1, token), mask=is_place)


@triton.jit
def _maximum(a, b):
    return tl.maximum(a, b, propagate_nan=tl.PropagateNan.ALL)


def max_scores_backward(
    grad: torch.Tensor, queries: torch.Tensor, codebook: torch.Tensor, winners: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    r"""
    The gradient of [`max_scores`]: a winning token receives grad x code, and the code grad x query. Work is for codes
    whose gradient is not 0, and for reading `grad` twice.

    Args:
        grad (`torch.Tensor` of shape `(batch_size, codebook_size)`): float32, gradient of the largest scores.
        queries, codebook: as in [`max_scores`].
        winners (`torch.Tensor` of shape `(batch_size, codebook_size)`): as [`max_scores`] returns them.

    Returns:
        The gradients of queries and codebook, of their shapes and types. All is multiplied and added up in float32
        and rounded once, at the end.
    """
    grad, queries, codebook, winners = (tensor.contiguous() for tensor in (grad, queries, codebook, winners))
    with torch.cuda.device_of(queries):
        grad_queries = _sum_by_winner(grad, winners, codebook, torch.empty_like(queries), is_by_code=False)
        grad_codebook = _sum_by_winner(grad, winners, queries, torch.empty_like(codebook), is_by_code=True)
    return grad_queries, grad_codebook


# How many codes share a list of entries and a tile of sums.
_GROUP_CODES = 64
# With 4, a tile's sums and the parts of its products do not fit into a thread's registers (compiled for 8.0).
_SUM_WARPS = 8


def _sum_by_winner(
    grad: torch.Tensor, winners: torch.Tensor, table: torch.Tensor, sums: torch.Tensor, is_by_code: bool
) -> torch.Tensor:
    """
    Fill `sums`, the gradient of the codebook (`is_by_code`) or of the queries, with sums of grad x vectors of `table`.

    The entries of `grad` fall into groups, the codes of one block or the tokens of one row. First the entries that are
    not 0 are listed for each group, in order; then each group multiplies a matrix that has an entry's gradient in the
    row of the code or token it belongs to, (targets, entries), with the entries' vectors, (entries, codebook_dim).
    """
    batch_size, codebook_size = grad.shape
    group_codes = _GROUP_CODES if is_by_code else codebook_size
    num_groups = triton.cdiv(codebook_size, group_codes) if is_by_code else batch_size
    num_targets = group_codes if is_by_code else sums.shape[1]
    group_size = group_codes * (batch_size if is_by_code else 1)
    num_tokens, codebook_dim = (table if is_by_code else sums).shape[1:]
    entries = winners.new_empty(num_groups, group_size)
    counts = winners.new_empty(num_groups)
    shared = {"codebook_size": codebook_size, "GROUP_CODES": group_codes, "IS_BY_CODE": is_by_code}
    _list_entries_kernel[(num_groups,)](grad, winners, entries, counts, group_size, **shared, BLOCK_SIZE=2048)
    block_targets, block_dim = min(max(triton.next_power_of_2(num_targets), 16), 64), 128
    grid = (num_groups, triton.cdiv(num_targets, block_targets), triton.cdiv(codebook_dim, block_dim))
    _sum_entries_kernel[grid](
        grad,
        winners,
        entries,
        counts,
        table,
        sums,
        group_size,
        num_tokens,
        num_targets,
        sums.numel() // codebook_dim,
        **shared,
        CODEBOOK_DIM=codebook_dim,
        BLOCK_TARGETS=block_targets,
        BLOCK_ENTRIES=32,
        BLOCK_DIM=block_dim,
        num_warps=_SUM_WARPS,
    )
    return sums


@triton.jit
def _locate(group, entry, GROUP_CODES: tl.constexpr, IS_BY_CODE: tl.constexpr):
    """Row and code of a group's entry: a group is all rows of some codes, or all codes of one row."""
    if IS_BY_CODE:
        return (entry // GROUP_CODES).to(tl.int64), group * GROUP_CODES + entry % GROUP_CODES
    else:
        return group.to(tl.int64), entry


@triton.jit
def _list_entries_kernel(
    grad,
    winners,
    entries,
    counts,
    group_size,
    codebook_size,
    GROUP_CODES: tl.constexpr,
    IS_BY_CODE: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
):
    group = tl.program_id(0)
    group_entries = entries + group.to(tl.int64) * group_size
    count = 0
    for start in range(0, group_size, BLOCK_SIZE):
        entry = start + tl.arange(0, BLOCK_SIZE)
        row, code = _locate(group, entry, GROUP_CODES, IS_BY_CODE)
        is_entry = (entry < group_size) & (code < codebook_size)
        place = row * codebook_size + code
        weight = tl.load(grad + place, mask=is_entry, other=0)
        is_kept = (weight != 0) & (tl.load(winners + place, mask=is_entry, other=-1) >= 0)
        rank = count + tl.cumsum(is_kept.to(tl.int32)) - 1
        tl.store(group_entries + rank, entry, mask=is_kept)
        count += tl.sum(is_kept.to(tl.int32))
    tl.store(counts + group, count)


@triton.jit(do_not_specialize=["num_tokens", "num_targets", "num_sums"])
def _sum_entries_kernel(
    grad,
    winners,
    entries,
    counts,
    table,
    sums,
    group_size,
    num_tokens,
    num_targets,
    num_sums,
    codebook_size,
    GROUP_CODES: tl.constexpr,
    IS_BY_CODE: tl.constexpr,
    CODEBOOK_DIM: tl.constexpr,
    BLOCK_TARGETS: tl.constexpr,
    BLOCK_ENTRIES: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
):
    group = tl.program_id(0)
    targets = tl.program_id(1) * BLOCK_TARGETS + tl.arange(0, BLOCK_TARGETS)
    dims = tl.program_id(2) * BLOCK_DIM + tl.arange(0, BLOCK_DIM)
    group_entries = entries + group.to(tl.int64) * group_size
    count = tl.load(counts + group)
    total = tl.zeros((BLOCK_TARGETS, BLOCK_DIM), tl.float32)
    for start in range(0, count, BLOCK_ENTRIES):
        place = start + tl.arange(0, BLOCK_ENTRIES)
        entry = tl.load(group_entries + place, mask=place < count, other=0)
        row, code = _locate(group, entry, GROUP_CODES, IS_BY_CODE)
        winner = tl.load(winners + row * codebook_size + code)
        if IS_BY_CODE:
            target, source = entry % GROUP_CODES, row * num_tokens + winner
        else:
            target, source = winner, code.to(tl.int64)
        is_here = (place < count) & (target // BLOCK_TARGETS == tl.program_id(1))
        weight = tl.load(grad + row * codebook_size + code, mask=is_here, other=0)
        vectors = tl.load(
            table + (source * CODEBOOK_DIM)[:, None] + dims[None, :],
            mask=is_here[:, None] & (dims < CODEBOOK_DIM)[None, :],
            other=0,
        )
        weights = tl.where(targets[:, None] == target[None, :], weight[None, :], 0.0)
        # A gradient in half precision would lose digits, or vanish where it is small. Three products of its parts keep
        # float32 on tensor cores; the vectors of half precision are a single part.
        total = tl.dot(weights, vectors.to(tl.float32), total, input_precision="tf32x3")
    sum_index = group.to(tl.int64) * num_targets + targets
    tl.store(
        sums + (sum_index * CODEBOOK_DIM)[:, None] + dims[None, :],
        total.to(sums.dtype.element_ty),
        mask=((targets < num_targets) & (sum_index < num_sums))[:, None] & (dims < CODEBOOK_DIM)[None, :],
    )


def sparsemax(rows: torch.Tensor) -> torch.Tensor:
    r"""
    Sparsemax of every row, read once and written once: one program holds a row.

    Args:
        rows (`torch.Tensor` of shape `(num_rows, row_size)`): float32 scores, at most 65,536 in a row.

    Returns:
        `torch.Tensor`: weights of that shape, at least 0, every row summing to 1. A row with a NaN is NaN.
    """
    num_rows, row_size = rows.shape
    block_size = triton.next_power_of_2(row_size)
    weights = torch.empty_like(rows)
    num_warps = min(max(block_size // 1024, 1), 32)  # 32 scores per thread; 64 in the longest rows
    with torch.cuda.device_of(rows):
        _sparsemax_kernel[(num_rows,)](rows, weights, row_size, BLOCK_SIZE=block_size, num_warps=num_warps)
    return weights


@triton.jit
def _sparsemax_kernel(rows, weights, row_size, BLOCK_SIZE: tl.constexpr):
    columns = tl.arange(0, BLOCK_SIZE)
    places = tl.program_id(0).to(tl.int64) * row_size + columns
    scores = tl.load(rows + places, mask=columns < row_size, other=float("-inf"))
    scores -= tl.max(scores)
    # Newton's method for the threshold at which the weights sum to 1, from below: -1 gives the largest score a weight
    # of 1, and every step drops scores and rises until none is left to drop. A NaN stays in and makes the sum NaN.
    threshold = -2.0
    higher = -1.0
    while higher > threshold:
        threshold = higher
        is_dropped = scores <= threshold
        size = tl.sum(tl.where(is_dropped, 0.0, 1.0))
        higher = (tl.sum(tl.where(is_dropped, 0.0, scores)) - 1) / size
    tl.store(weights + places, tl.where(scores <= higher, 0.0, scores - higher), mask=columns < row_size)
