"""Moving rows within a KV pool."""

from torch import Tensor

from adaserve.kernels import native


def move_rows_reference(pool: Tensor, source: Tensor, dest: Tensor) -> None:
    """The plain torch twin of `move_rows`."""
    pool[:, dest] = pool[:, source]


def move_rows(pool: Tensor, source: Tensor, dest: Tensor) -> None:
    """In every layer of pool [layers, R, ...] copy rows source [m] to rows dest [m]; all are read before any is written.

    source and dest are int64; no row is named twice in dest, and none stands in both, but for rows that move onto themselves.
    """
    if pool.is_cuda:
        from adaserve.kernels import triton_rows

        triton_rows.move_rows(pool, source, dest)
        return
    run = native.function("rows", "move_rows", "piiippi") if pool.is_cpu and pool.is_contiguous() else None
    if run is None:
        move_rows_reference(pool, source, dest)
        return
    source, dest = source.contiguous(), dest.contiguous()
    layers, rows = pool.shape[:2]
    row_bytes = pool.stride(1) * pool.element_size()
    run(pool.data_ptr(), layers, rows, row_bytes, source.data_ptr(), dest.data_ptr(), source.shape[0])
