"""Cases for rules of what treats, moves and reduces numbers: operators, a model, and what is expected."""

import torch
from tiny_models import (
    ATEN,
    COMPARED,
    CURVED,
    MEET,
    NOISE,
    SMOOTH,
    all_same,
    between,
    bounded,
    chain,
    chained_pools,
    compared,
    images,
    met,
    met_in_all,
    mixed_halves,
    norm,
    normed,
    order,
    pairs,
    pools1d,
    raises,
    same,
    shuffled,
    unary,
)
from torch import nn

CASES = [
    (CURVED, lambda: between(unary(CURVED)), same),
    (SMOOTH, lambda: between(unary(SMOOTH)), same),
    (
        "clamp clamp_min clamp_max threshold _to_copy",
        lambda: between(
            chain(
                lambda h: h.clamp(0, 1),
                lambda h: ATEN.clamp_min(h, 0),
                lambda h: ATEN.clamp_max(h, 1),
                lambda h: ATEN.threshold(h, 0.5, 0.1),
                lambda h: h.to(torch.float64).to(torch.float32),
                lambda h: h.type_as(torch.zeros(1)),
            )
        ),
        same,
    ),
    (
        "softmax log_softmax layer_norm rms_norm group_norm instance_norm",
        lambda: between(
            chain(
                lambda h: norm(None, h),
                lambda h: h.softmax(-1).log_softmax(1),
                lambda h: nn.functional.instance_norm(h.mT).mT,
            )
        ),
        same,
    ),
    (
        "_native_batch_norm_legit_no_training",
        lambda: between(lambda m, h: m.norm(h.mT).mT, norm=nn.BatchNorm1d(6)),
        same,
    ),
    (
        "prelu",
        lambda: between(lambda self, h: self.slope(h.transpose(1, 2)).transpose(1, 2), slope=nn.PReLU(6)),
        same,
    ),
    *[
        (names, lambda o=operators: met_in_all(o), all_same("a", "other", "b."))
        for names, operators in MEET.items()
    ],
    (COMPARED, lambda: met(compared), all_same("a", "other", "b.")),
    ("where", lambda: met(lambda a, c: torch.where(a > 0, c, 0.0)), all_same("a", "other", "b.")),
    ("masked_fill", lambda: met(lambda a, c: c.masked_fill(a > 0, 0.0)), all_same("a", "other", "b.")),
    ("addcmul", lambda: met(lambda a, c: torch.addcmul(a, c, c)), all_same("a", "other", "b.")),
    ("addcdiv", lambda: met(lambda a, c: torch.addcdiv(a, c, c)), all_same("a", "other", "b.")),
    ("lerp", lambda: met(lambda a, c: torch.lerp(a, c, 0.5)), all_same("a", "other", "b.")),
    ("mul", lambda: met(lambda a, c: a * c.mean(-1, keepdim=True)), all_same("a", "b.")),
    ("add", lambda: met(lambda a, c: a + c[..., :1]), raises("adds one unit to several")),
    ("mul", lambda: met(lambda a, c: a * c[..., :1]), all_same("a", "b.")),
    (
        "add",
        lambda: met(lambda a, c: (a[..., None] + c[..., None, :])[..., 0]),
        raises("different dimensions"),
    ),
    ("clamp clamp_min clamp_max", lambda: met(bounded), all_same("a", "other", "b.")),
    *[
        (
            name,
            lambda name=name: met(lambda a, c: normed(name, a, c)),
            all_same("a", "other", "b."),
        )
        for name in ("layer_norm", "rms_norm", "group_norm", "instance_norm")
    ],
    ("prelu", lambda: met(lambda a, c: torch.prelu(a.mT, c[0, 0]).mT), raises("slopes that weights have")),
    ("tril triu", lambda: between(lambda _, h: h.tril() + h.triu()), same),
    ("randn_like rand_like", lambda: met(lambda a, c: a + torch.randn_like(c) * torch.rand_like(c)), NOISE),
    ("glu", lambda: between(lambda self, h: ATEN.glu(h), 3), order(0, 1, 2, glu=True)),
    # What moves numbers: by hand, where each lands.
    ("flip", lambda: between(lambda _, h: h.flip(-1)), order(5, 4, 3, 2, 1, 0)),
    ("roll", lambda: between(lambda _, h: h.roll(2, -1)), order(4, 5, 0, 1, 2, 3)),
    ("slice", lambda: between(lambda _, h: h[..., 1::2], 3), order(1, 3, 5)),
    ("select unsqueeze", lambda: between(lambda _, h: h[..., 4].unsqueeze(-1), 1), order(4)),
    ("split", lambda: between(lambda _, h: h.split(4, -1)[1], 2), order(4, 5)),
    ("split_with_sizes", lambda: between(lambda _, h: h.split([1, 2, 3], -1)[1], 2), order(1, 2)),
    ("split", lambda: between(lambda _, h: h.chunk(2, -1)[1], 3), order(3, 4, 5)),
    (
        "unbind stack",
        lambda: between(lambda _, h: torch.stack(h.unbind(-1)[::-1], -1)),
        order(5, 4, 3, 2, 1, 0),
    ),
    ("slice", lambda: between(lambda _, h: h.narrow(-1, 2, 3), 3), order(2, 3, 4)),
    (
        "cat",
        lambda: between(lambda _, h: torch.cat([h[..., 3:], h], -1), 9),
        order(3, 4, 5, 0, 1, 2, 3, 4, 5),
    ),
    ("repeat", lambda: between(lambda _, h: h.repeat(1, 1, 2), 12), order(*range(6), *range(6))),
    ("tile", lambda: between(lambda _, h: h.tile(2), 12), order(*range(6), *range(6))),
    (
        "repeat_interleave",
        lambda: between(lambda _, h: h.repeat_interleave(2, -1), 12),
        order(0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5),
    ),
    (
        "transpose _unsafe_view",
        lambda: between(lambda _, h: h.unflatten(-1, (2, 3)).transpose(-1, -2).flatten(2)),
        order(0, 3, 1, 4, 2, 5),
    ),
    (
        "view permute _unsafe_view",
        lambda: between(lambda _, h: h.view(2, 7, 3, 2).permute(0, 1, 3, 2).reshape(2, 7, 6)),
        order(0, 2, 4, 1, 3, 5),
    ),
    ("t", lambda: between(lambda _, h: h.t().t(), inputs=torch.rand(7, 4)), same),
    ("permute", lambda: between(lambda _, h: h.movedim(1, 0)), same),
    ("squeeze expand", lambda: between(lambda _, h: h[:, :1].squeeze(1).unsqueeze(1).expand(2, 9, 6)), same),
    ("index", lambda: between(lambda _, h: h[..., torch.tensor([1, 3])], 2), order(1, 3)),
    ("index_select", lambda: between(lambda _, h: h.index_select(-1, torch.tensor([1, 3])), 2), order(1, 3)),
    ("gather", lambda: between(lambda _, h: h.gather(1, torch.zeros(2, 3, 6, dtype=torch.long))), same),
    ("unfold", lambda: between(lambda _, h: h.unfold(-1, 2, 2)[..., 1], 3), order(1, 3, 5)),
    ("diagonal", lambda: between(lambda _, h: h.diagonal(0, 0, 1).mT[:, None]), same),
    ("rot90", lambda: between(lambda _, h: h.rot90(2, (1, 2))), order(5, 4, 3, 2, 1, 0)),
    ("pixel_shuffle", lambda: images(lambda _, h: ATEN.pixel_shuffle(torch.cat([h, h], 1), 2), 3), shuffled),
    (
        "pixel_unshuffle",
        lambda: images(lambda _, h: ATEN.pixel_unshuffle(h, 2), 24),
        order(*[i for i in range(6) for _ in range(4)]),
    ),
    ("channel_shuffle", lambda: images(lambda _, h: ATEN.channel_shuffle(h, 2)), order(0, 3, 1, 4, 2, 5)),
    (
        "im2col",
        lambda: between(lambda _, h: torch.nn.functional.unfold(h.mT[..., None], (2, 1)).mT, 12),
        order(*[i for i in range(6) for _ in range(2)]),
    ),
    ("pad", lambda: between(lambda _, h: torch.nn.functional.pad(h, (1, 0))[..., 1:]), same),
    ("constant_pad_nd", lambda: between(lambda _, h: ATEN.constant_pad_nd(h, [0, 0, 1, 1])), same),
    ("reflection_pad1d", lambda: between(lambda _, h: ATEN.reflection_pad1d(h.mT, [1, 1]).mT), same),
    ("replication_pad1d", lambda: between(lambda _, h: ATEN.replication_pad1d(h.mT, [1, 1]).mT), same),
    (
        "reflection_pad2d replication_pad2d",
        lambda: images(lambda _, h: ATEN.replication_pad2d(ATEN.reflection_pad2d(h, [1] * 4), [1] * 4)),
        same,
    ),
    ("slice_scatter", lambda: met(lambda a, c: ATEN.slice_scatter(a, c[..., :3], 2, 3, 6)), mixed_halves),
    (
        "select_scatter",
        lambda: met(lambda a, c: ATEN.select_scatter(a, c[:, 0], 1, 0)),
        all_same("b.", "a", "other"),
    ),
    ("copy", lambda: met(lambda a, c: ATEN.copy(a, c)), all_same("b.", "other")),
    (
        "index_put",
        lambda: met(lambda a, c: a.index_put((torch.tensor([0]),), c[:1])),
        all_same("b.", "a", "other"),
    ),
    (
        "index_add",
        lambda: met(lambda a, c: a.index_add(1, torch.tensor([0]), c[:, :1])),
        all_same("b.", "a", "other"),
    ),
    (
        "scatter_add",
        lambda: met(lambda a, c: a.scatter_add(1, torch.zeros(2, 7, 6, dtype=torch.long), c)),
        all_same("b.", "a", "other"),
    ),
    (
        "view_as_complex view_as_real",
        lambda: between(
            lambda _, h: torch.view_as_real(torch.view_as_complex(h.unflatten(-1, (3, 2)))).flatten(2)
        ),
        pairs,
    ),
    ("topk", lambda: between(lambda _, h: h.topk(2, 1).values), same),
    ("sort", lambda: between(lambda _, h: h.sort(1).values), same),
    ("topk", lambda: between(lambda _, h: h.topk(6, -1).values), raises("mixes several units")),
    ("cumsum", lambda: between(lambda _, h: h.cumsum(1)), same),
    (
        "cumsum",
        lambda: between(lambda _, h: h.cumsum(-1)),
        raises("adds up along a dimension along which units"),
    ),
    (
        "argmax",
        lambda: met(lambda a, c: a + nn.functional.one_hot(c.argmax(-1), 6)),
        all_same("a", "b."),
    ),
    (
        "zeros_like ones_like",
        lambda: met(lambda a, c: a + torch.zeros_like(c) * torch.ones_like(c)),
        all_same("a", "b."),
    ),
    # What makes one number of many.
    (
        "mean sum amax amin var std logsumexp prod linalg_vector_norm",
        lambda: between(
            lambda _, h: (
                h.mean(1)
                + h.sum(1)
                + h.amax(1)
                + h.amin(1)
                + h.var(1)
                + h.std(1)
                + h.logsumexp(1)
                + h.prod(1)
                + torch.linalg.vector_norm(h, dim=1)
            )
        ),
        same,
    ),
    (
        "max min median var_mean std_mean",
        lambda: between(
            lambda _, h: (
                h.max(1)[0]
                + h.min(1)[0]
                + h.median(1)[0]
                + sum(torch.var_mean(h, 1))
                + sum(torch.std_mean(h, 1))
            )
        ),
        same,
    ),
    ("mean", lambda: between(lambda _, h: h.mean(-1, keepdim=True), 1), raises("mixes several units")),
    (
        "max_pool2d avg_pool2d adaptive_avg_pool2d upsample_nearest2d upsample_bilinear2d upsample_bicubic2d",
        lambda: images(chained_pools),
        same,
    ),
    (
        "max_pool1d avg_pool1d adaptive_avg_pool1d upsample_nearest1d upsample_linear1d",
        lambda: between(lambda _, h: pools1d(h.mT).mT),
        same,
    ),
    (
        "max_pool1d",
        lambda: between(lambda _, h: ATEN.max_pool1d(h, [2]), 3),
        raises("pools places that are of different units"),
    ),
]
