"""torch's operations on lists of tensors: one launch for many tensors. Their names in torch are
private; torch's own optimisers use them."""

from __future__ import annotations

import torch

add = torch._foreach_add  # pyright: ignore
add_ = torch._foreach_add_  # pyright: ignore
copy_ = torch._foreach_copy_  # pyright: ignore
div = torch._foreach_div  # pyright: ignore
lerp_ = torch._foreach_lerp_  # pyright: ignore
mul = torch._foreach_mul  # pyright: ignore
mul_ = torch._foreach_mul_  # pyright: ignore
sqrt = torch._foreach_sqrt  # pyright: ignore
