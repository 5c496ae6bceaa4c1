"""Cases for rules of weights, and of activations that multiply each other."""

import torch
from tiny_models import (
    ATEN,
    GRAM,
    QKV,
    Model,
    a_matrix_for_each,
    all_same,
    all_sizes,
    attention,
    between,
    bmm_attention,
    columns_looked_up,
    embedded,
    heads,
    images,
    in_a_row,
    looked_up,
    met,
    mixture,
    pairwise,
    pools3d,
    raises,
    same,
    sliced,
    smooth_pools,
    stored_as_in_out,
    tables,
    weights,
    written_from_the_left,
)
from torch import nn

CASES = [
    (
        "linear",
        lambda: weights(
            lambda m, x: nn.functional.linear(nn.functional.linear(x, m.w[:4]), m.v[:, 2:]),
            torch.rand(2, 3),
            w=(6, 3),
            v=(5, 6),
        ),
        sliced,
    ),
    (
        "linear",
        lambda: weights(lambda m, x: nn.functional.linear(x, m.w.view(4, 6)), torch.rand(2, 6), w=(8, 3)),
        raises("with other rows and columns than are stored"),
    ),
    (
        "linear",
        lambda: weights(lambda m, x: nn.functional.linear(x, m.w * 2), torch.rand(2, 3), w=(8, 3)),
        raises("a weight that is computed"),
    ),
    (
        "addmm matmul",
        lambda: weights(
            lambda m, x: torch.addmm(m.c, x, m.w) @ m.v, torch.rand(2, 3), w=(3, 6), v=(6, 5), c=(6,)
        ),
        stored_as_in_out,
    ),
    (
        "matmul",
        lambda: weights(lambda m, x: (x @ m.w) @ m.v, torch.rand(2, 7, 3), w=(3, 6), v=(6, 5)),
        stored_as_in_out,
    ),
    (
        "matmul",
        lambda: weights(lambda m, x: m.v @ (m.w @ x), torch.rand(2, 3, 7), w=(6, 3), v=(5, 6)),
        written_from_the_left,
    ),
    (
        "bmm",
        lambda: weights(
            lambda m, x: torch.bmm(torch.bmm(x, m.w), m.v), torch.rand(2, 7, 3), w=(2, 3, 6), v=(2, 6, 5)
        ),
        a_matrix_for_each,
    ),
    (
        "matmul",
        lambda: weights(
            lambda m, x: torch.matmul(torch.matmul(x, m.w), m.v),
            torch.rand(3, 2, 7, 3),
            w=(2, 3, 6),
            v=(2, 6, 5),
        ),
        a_matrix_for_each,
    ),
    (
        "matmul",
        lambda: weights(
            lambda m, x: torch.matmul(torch.matmul(x, m.w), m.v), torch.rand(7, 3), w=(2, 3, 6), v=(2, 6, 5)
        ),
        a_matrix_for_each,
    ),
    (
        "baddbmm",
        lambda: weights(lambda m, x: torch.baddbmm(torch.zeros(1), x, m.w), torch.rand(2, 7, 3), w=(2, 3, 6)),
        lambda n: all_sizes(n, 2),
    ),
    (
        "embedding",
        lambda: (
            Model(lambda m, x: m.b(m.a(x)), a=nn.Embedding(9, 6), b=nn.Linear(6, 5)),
            torch.tensor([[1, 2]]),
        ),
        embedded,
    ),
    ("index", lambda: tables(lambda m, t: m.b(m.w[t]), 9, 6), looked_up),
    ("index", lambda: tables(lambda m, t: m.b(m.w.T[:, t].permute(1, 2, 0)), 9, 6), looked_up),
    ("index_select", lambda: tables(lambda m, t: m.b(m.w.index_select(0, t[0])), 9, 6), looked_up),
    ("index", lambda: tables(lambda m, t: m.b(m.w[:, t].permute(1, 2, 0)), 6, 9), columns_looked_up),
    ("index", lambda: tables(lambda m, t: (m.b(m.w[t]), m.w[t] @ m.w.T), 9, 6), looked_up),
    (
        "linear",
        lambda: met(lambda a, c: nn.functional.linear(a, torch.eye(6), c[0, 0])),
        raises("is computed"),
    ),
    (
        "conv1d",
        lambda: (nn.Sequential(nn.Conv1d(3, 6, 2), nn.Conv1d(6, 4, 2)), torch.rand(2, 3, 9)),
        in_a_row,
    ),
    (
        "conv2d",
        lambda: (nn.Sequential(nn.Conv2d(3, 6, 2), nn.Conv2d(6, 4, 2)), torch.rand(2, 3, 9, 9)),
        in_a_row,
    ),
    (
        "conv3d",
        lambda: (nn.Sequential(nn.Conv3d(3, 6, 2), nn.Conv3d(6, 4, 2)), torch.rand(2, 3, 9, 9, 9)),
        in_a_row,
    ),
    (
        "conv_transpose1d",
        lambda: (
            nn.Sequential(nn.ConvTranspose1d(3, 6, 2), nn.ConvTranspose1d(6, 4, 2)),
            torch.rand(2, 3, 9),
        ),
        in_a_row,
    ),
    (
        "conv_transpose2d",
        lambda: (
            nn.Sequential(nn.ConvTranspose2d(3, 6, 2), nn.ConvTranspose2d(6, 4, 2)),
            torch.rand(2, 3, 9, 9),
        ),
        in_a_row,
    ),
    (
        "conv_transpose3d",
        lambda: (
            nn.Sequential(nn.ConvTranspose3d(3, 6, 2), nn.ConvTranspose3d(6, 4, 2)),
            torch.rand(2, 3, 4, 4, 4),
        ),
        in_a_row,
    ),
    (
        "conv_transpose2d",
        lambda: (nn.ConvTranspose2d(4, 4, 2, groups=2), torch.rand(2, 4, 3, 3)),
        raises("a transposed convolution in groups"),
    ),
    (
        "conv1d",
        lambda: between(lambda m, h: m.k(h), k=nn.Conv1d(7, 7, 3, padding=1)),
        raises("slides along a dimension along which units lie"),
    ),
    # Activations by activations.
    ("scaled_dot_product_attention", lambda: attention(QKV), heads(0, 0, 0, 1, 1, 1)),
    ("matmul", lambda: attention(lambda q, k, v: (q @ k.mT).softmax(-1) @ v), heads(0, 0, 0, 1, 1, 1)),
    ("bmm", lambda: attention(bmm_attention), heads(0, 0, 0, 1, 1, 1)),
    ("matmul", lambda: attention(lambda q, k, v: q @ (k.mT @ v)), heads(0, 0, 0, 1, 1, 1)),
    ("matmul", lambda: met(lambda a, c: torch.rand(7, 7) @ a), all_same("a", "b.")),
    ("matmul", lambda: met(lambda a, c: c[..., :1].mT.softmax(-1) @ a), all_same("a", "b.")),
    ("matmul", lambda: met(lambda a, c: c.mT @ a), raises(GRAM)),
    ("mm", lambda: pairwise(), all_same("a", "other")),
    ("mv", lambda: between(lambda m, h: h[0] * torch.mv(h[0], torch.rand(6))[:, None]), same),
    (
        "max_pool3d avg_pool3d adaptive_avg_pool3d upsample_nearest3d upsample_trilinear3d",
        lambda: (
            Model(lambda m, x: m.b(pools3d(m.a(x))), a=nn.Conv3d(4, 6, 1), b=nn.Conv3d(6, 5, 1)),
            torch.rand(1, 4, 4, 4, 4),
        ),
        same,
    ),
    (
        "_upsample_bilinear2d_aa _upsample_bicubic2d_aa _upsample_nearest_exact2d adaptive_max_pool2d",
        lambda: images(smooth_pools),
        same,
    ),
    (
        "grid_sampler_2d",
        lambda: images(lambda _, h: ATEN.grid_sampler_2d(h, torch.zeros(2, 3, 3, 2), 0, 0, False)),
        same,
    ),
    (
        "index_copy",
        lambda: met(lambda a, c: a.index_copy(1, torch.tensor([0]), c[:, :1])),
        all_same("b.", "a", "other"),
    ),
    (
        "scatter",
        lambda: met(lambda a, c: a.scatter(1, torch.zeros(2, 7, 6, dtype=torch.long), c)),
        all_same("b.", "a", "other"),
    ),
    (
        "argmin argsort any all",
        lambda: met(
            lambda a, c: (
                a + c.argmin(-1, True) + c.argsort(-1) + (c > 0).any(-1, True) + (c > 0).all(-1, True)
            )
        ),
        all_same("a", "b."),
    ),
    (
        "new_zeros new_ones new_full full_like",
        lambda: met(
            lambda a, c: a + c.new_zeros(6) + c.new_ones(6) + c.new_full((6,), 2.0) + torch.full_like(c, 1.0)
        ),
        all_same("a", "b."),
    ),
    ("transformers::grouped_mm_fallback", lambda: mixture(), lambda n: all_sizes(n, 2 + 4 + 1 + 2 * 3)),
]
