"""Full precision on a GPU: what is set for it, seen without one."""

from __future__ import annotations

import pytest
import torch

from ray_gen.precision import full_precision


@pytest.mark.parametrize("before", ["high", "highest"])
def test_products_and_convolutions_have_no_tf32_and_then_what_they_had(before: str) -> None:
    products, convolutions = torch.backends.cuda.matmul, torch.backends.cudnn
    kept = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision(before)
        outside = products.allow_tf32, convolutions.allow_tf32, convolutions.deterministic
        assert outside[0] == (before == "high")
        with pytest.raises(KeyError), full_precision(torch.device("cuda")):
            assert products.fp32_precision == "ieee"
            assert not convolutions.allow_tf32 and convolutions.deterministic
            raise KeyError
        assert torch.get_float32_matmul_precision() == before
        assert outside == (
            products.allow_tf32,
            convolutions.allow_tf32,
            convolutions.deterministic,
        )
    finally:
        torch.set_float32_matmul_precision(kept)
