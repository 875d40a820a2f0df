"""Packing, walking and picking of trees in one call each; their twins, some of which are in tree.py, take any device."""

from array import array
from collections.abc import Sequence

import torch
from torch import Tensor

from adaserve.kernels import native
from adaserve.runtime.transfer import upload
from adaserve.tree import MAX_NODES, ROOT, CandidateTree, DraftTree
from adaserve.tree import edge_prob as edge_prob_reference
from adaserve.tree import pack as pack_reference

MOST_COLUMNS = 256
"""Of candidate trees that a Triton kernel takes; a program holds one tree's."""


def pack(candidates: CandidateTree, chosen: Tensor, root_token: Tensor, size: int | None = None) -> DraftTree:
    """Pack the roots and the chosen nodes of all requests into flat rows: tree.pack, whose depths follow from parents."""
    n, columns = chosen.shape
    if size is not None and n <= size and _takes(chosen):
        from adaserve.kernels import triton_trees

        return triton_trees.pack(candidates, chosen, root_token, size)
    token, parent, source = candidates.token, candidates.parent, candidates.source
    suits = size is None and columns and native.readable(token, parent, source, chosen, root_token)
    run = native.function("trees", "pack_trees", "pppppiippp") if suits else None
    if run is None:
        return pack_reference(candidates, chosen, root_token, size)
    count = torch.empty_like(root_token)  # [n]
    out = torch.empty(8 * n * (columns + 1), dtype=torch.int64)
    found = array("q", [0, 0])
    arrays = token.data_ptr(), parent.data_ptr(), source.data_ptr(), chosen.data_ptr(), root_token.data_ptr()
    run(*arrays, n, columns, count.data_ptr(), found.buffer_info()[0], out.data_ptr())
    rows, most = found
    if most > MAX_NODES:
        raise ValueError(f"a request may have at most {MAX_NODES} nodes verified, {most} were chosen")
    tokens, parents, row, depth, node, mask, column, sources = out[: 8 * rows].view(8, rows).unbind()
    return DraftTree(tokens, parents, row, depth, node, mask, column, sources, count)


def compile_all(device: torch.device) -> None:
    """On a GPU, have every variant of the kernels compiled, so that no request waits for it."""
    if device.type != "cuda":
        return
    for columns in (1, 65, MOST_COLUMNS):  # a program holds 64, 128 or 256
        ids = torch.zeros(1, columns, dtype=torch.int64, device=device)  # [1, N]
        candidates = CandidateTree(ids, ids - 1, ids + 1, ids.double(), ids)
        picked(candidates, [0], [1], columns)
        edge_prob(candidates)
        tree = pack(candidates, ids.bool(), ids[:, 0], 1)
        walk(tree, tree.token, 1)


def _takes(columns: Tensor) -> bool:
    """Whether a Triton kernel takes trees of these columns [n, N]."""
    return columns.is_cuda and 0 < columns.shape[1] <= MOST_COLUMNS


def accepted_rows(tree: DraftTree, drawn: Tensor, max_depth: int) -> Tensor:
    """Say which packed rows lie on the accepted path, roots included: [B] bool.

    Children of one parent carry different tokens, so the accepted rows of a request are one path.
    """
    is_root = tree.depth == 0  # [B]
    match = tree.token == drawn[tree.parent]  # [B]
    accepted = is_root
    for _ in range(max_depth):
        accepted = is_root | (match & accepted[tree.parent])
    return accepted


def walk_reference(tree: DraftTree, drawn: Tensor, max_depth: int) -> tuple[Tensor, Tensor, Tensor]:
    """The plain torch twin of `walk`; d rounds of tensor operations, nothing read by the host."""
    n, width = tree.count.shape[0], max_depth + 1
    accepted = accepted_rows(tree, drawn, max_depth)
    # Rows off the path write to a spare cell behind the last request's.
    cell = torch.where(accepted, tree.row * width + tree.depth, n * width)  # [B]
    tokens = drawn.new_zeros(n * width + 1).scatter(0, cell, drawn)[:-1].view(n, width)
    length = tree.count.new_zeros(n + 1).scatter_add(0, tree.row, accepted.long())[:-1]  # padding rows belong to request n
    return tokens, length, accepted


def walk(tree: DraftTree, drawn: Tensor, max_depth: int) -> tuple[Tensor, Tensor, Tensor]:
    """Walk all trees along the tokens that were drawn: tokens [n, D + 1] gained, padded with 0, length [n], and accepted [B].

    drawn [B]: the target's draw at every row. `max_depth` is D, at least the deepest node's depth, known to the host.
    """
    if drawn.is_cuda:
        from adaserve.kernels import triton_trees

        return triton_trees.walk(tree, drawn, max_depth)
    fields = tree.token, tree.parent, tree.row, tree.depth, drawn
    run = native.function("trees", "walk_trees", "pppppiiippp") if native.readable(*fields) else None
    if run is None:
        return walk_reference(tree, drawn, max_depth)
    n, width = tree.count.shape[0], max_depth + 1
    tokens = torch.empty(n, width, dtype=torch.int64)  # [n, D + 1]
    length = torch.empty(n, dtype=torch.int64)  # [n]
    accepted = torch.empty(tree.rows, dtype=torch.bool)  # [B]
    found = accepted.data_ptr(), tokens.data_ptr(), length.data_ptr()
    run(*(field.data_ptr() for field in fields), tree.rows, n, width, *found)
    return tokens, length, accepted


def edge_prob(candidates: CandidateTree) -> Tensor:
    """f(v) / f(parent), as tree.edge_prob: [n, N] float64, 0 for padding."""
    parent, path_prob = candidates.parent, candidates.path_prob
    if _takes(path_prob):
        from adaserve.kernels import triton_trees

        return triton_trees.edge_prob(candidates)
    run = native.function("trees", "edge_prob", "ppiip") if native.readable(parent, path_prob) else None
    if run is None:
        return edge_prob_reference(candidates)
    edge = torch.empty_like(path_prob)  # [n, N]
    run(parent.data_ptr(), path_prob.data_ptr(), *parent.shape, edge.data_ptr())
    return edge


def picked_reference(tree: CandidateTree, rows: Sequence[int], room: Sequence[int], columns: int) -> CandidateTree:
    """The plain torch twin of `picked`, for any device."""
    row, most = upload([rows, room], tree.token.device)[:, :, None]  # [n, 1] each
    at, real = row[:, 0].clamp(min=0), row >= 0
    token, parent, depth, path_prob, source = (x[at, :columns] for x in vars(tree).values())
    return CandidateTree(
        token=torch.where(real, token, 0),
        parent=torch.where(real, parent, ROOT),
        depth=depth,
        path_prob=torch.where(real & (depth <= most), path_prob, 0.0),
        source=torch.where(real, source, 0),
    )


def picked(tree: CandidateTree, rows: Sequence[int], room: Sequence[int], columns: int) -> CandidateTree:
    """The first columns of some of the trees, each as deep as its room; padding where a row is below 0.  [n, columns]

    tree [p, N], at least one. rows, room [n]: numbers on the host.
    """
    if tree.token.is_cuda:
        from adaserve.kernels import triton_trees

        return triton_trees.picked(tree, rows, room, columns)
    return picked_reference(tree, rows, room, columns)
