"""A rule for each operator, reached by tiny models; what it does with units is written down by hand.

A case names the operators that it reaches. Those of all cases are those of the table: a rule without a case
fails, and so does a case that does not reach what it names.
"""

import number_cases
import pytest
import weight_cases

from modfast.network import reading
from modfast.network.following import CannotFollowError
from modfast.network.reading import read_network
from modfast.network.rules import RULES

CASES = number_cases.CASES + weight_cases.CASES

# What this PyTorch writes as other operators of the table; other versions, or other calls, may have it.
_OTHER_NAMES = (
    "_adaptive_avg_pool2d _adaptive_avg_pool3d adaptive_max_pool1d adaptive_max_pool3d "
    "max_pool2d_with_indices max_pool3d_with_indices _assert_async _assert_tensor_metadata "
    "_batch_norm_no_update batch_norm _native_batch_norm_legit native_layer_norm native_group_norm "
    "_fused_rms_norm _softmax _log_softmax _safe_softmax native_dropout dropout alpha_dropout "
    "feature_dropout _embedding_bag _embedding_bag_forward_only embedding_bag _grouped_mm _pad_enum "
    "_prelu_kernel _reshape_alias reshape flatten unflatten broadcast_to expand_as view_as chunk narrow "
    "movedim take_along_dim contiguous lift_fresh lift_fresh_copy to type_as convolution bitwise_and "
    "bitwise_or reflection_pad3d replication_pad3d bincount histc nonzero one_hot empty_like new_empty "
    "sym_size"
)
ELSEWHERE = frozenset(_OTHER_NAMES.split())


@pytest.fixture
def reached(monkeypatch):
    """The names of the rules that are looked up."""
    names = set()

    class Recorded(dict):
        def get(self, name, default=None):
            if name in self:
                names.add(name)
            return super().get(name, default)

    monkeypatch.setattr(reading, "RULES", Recorded(RULES))
    return names


@pytest.mark.parametrize("case", CASES, ids=[operators[:40] for operators, _, _ in CASES])
def test_rule(case, reached):
    operators, make, expected = case
    model, inputs = make()
    if isinstance(expected, str):
        with pytest.raises(CannotFollowError, match=expected):
            read_network(model, inputs)
    else:
        expected(read_network(model, inputs))
    assert set(operators.split()) <= reached


def test_each_rule_has_a_case():
    covered = {name for operators, _, _ in CASES for name in operators.split()}
    assert not covered & ELSEWHERE
    assert covered | ELSEWHERE == set(RULES)
    rules = {RULES[name].rule for name in covered}
    assert {RULES[name].rule for name in ELSEWHERE} <= rules
