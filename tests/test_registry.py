import dataclasses
from collections.abc import Mapping

import functional_opt as fo
import pytest


def test_mapping():
    registry = fo.Registry.of(fo.AdamW, fo.Cosine)
    assert isinstance(registry, Mapping)
    assert dict(registry) == {"adamw": fo.AdamW, "cosine": fo.Cosine}
    assert registry["adamw"] is fo.AdamW
    assert len(registry) == 2
    assert "cosine" in registry and "lion" not in registry and 3 not in registry
    assert registry.get("lion") is None
    assert repr(registry) == "Registry.of(AdamW, Cosine)"


def test_is_a_value():
    one, other = fo.Registry.of(fo.Adam, fo.SGD), fo.Registry.of(fo.SGD, fo.Adam)
    assert one == other and hash(one) == hash(other)
    assert one != fo.Registry.of(fo.Adam)
    with pytest.raises(dataclasses.FrozenInstanceError):
        one.kinds = ()  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(TypeError, match="item assignment"):
        one["lion"] = fo.Lion  # pyright: ignore[reportIndexIssue]


def test_union_is_a_new_value():
    one, other = fo.Registry.of(fo.Adam), fo.Registry.of(fo.SGD)
    both = one | other
    assert dict(both) == {"adam": fo.Adam, "sgd": fo.SGD}
    assert (len(one), len(other)) == (1, 1)
    assert "sgd" not in one and "sgd" not in fo.Registry.of(fo.Adam)
    assert fo.Registry.of() | both == both
    with pytest.raises(TypeError, match="unsupported operand"):
        one | {"sgd": fo.SGD}  # pyright: ignore[reportOperatorIssue, reportUnusedExpression]


def test_duplicate_name_names_both():
    class Adam(fo.AbstractOptimizer):
        def build(self, schedule):
            return fo.Adam().build(schedule)

    message = (
        r"the name 'adam' twice: functional_opt\._optimizers\.adaptive\.Adam and "
        r"test_registry\.test_duplicate_name_names_both\.<locals>\.Adam"
    )
    with pytest.raises(ValueError, match=message):
        fo.Registry.of(fo.Adam, Adam)
    with pytest.raises(ValueError, match=message):
        fo.Registry.of(fo.Adam) | fo.Registry.of(Adam)  # pyright: ignore[reportUnusedExpression]
    with pytest.raises(ValueError, match="twice"):
        fo.Registry.of(fo.Adam, fo.Adam)


def test_what_is_no_module():
    with pytest.raises(TypeError, match="AbstractSchedule, which does not implement"):
        fo.Registry.of(fo.AbstractSchedule)
    with pytest.raises(TypeError, match=r"got builtins\.int\."):
        fo.Registry.of(int)
    with pytest.raises(TypeError, match="got 'adam'"):
        fo.Registry.of("adam")
    with pytest.raises(TypeError, match=r"the instance Adam\(.*\)\. Pass `Adam`"):
        fo.Registry.of(fo.Adam())


def test_unknown_name():
    registry = fo.Registry.of(fo.AdamW, fo.Cosine)
    message = r"No module is named 'AdmW'\. Did you mean 'adamw'\? Known: adamw, cosine"
    with pytest.raises(KeyError, match=message) as caught:
        registry["AdmW"]
    assert "\n" not in str(caught.value)
    with pytest.raises(KeyError, match="Known: none"):
        fo.Registry.of()["adam"]
