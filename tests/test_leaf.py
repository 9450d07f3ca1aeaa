"""There is one way to address a leaf of a state, in every file, message and table."""

import pytest

from plures.method.leaf import Leaf, by_leaf, by_slot, of_short_name, short_names

STATE = {"model": {"fc.weight": 1, "fc.bias": 2}, "personal": {"fc.weight": 3}}


@pytest.mark.parametrize("text", ["model/fc.weight", "alpha/alpha", "wire/model/fc.weight"])
def test_an_address_is_read_as_it_is_written(text: str):
    leaf = Leaf.parse(text)
    assert (leaf.slot, leaf.path) == tuple(text.split("/", 1))
    assert str(leaf) == f"{leaf}" == text


def test_leaves_of_slots_are_addressed_and_put_back_in_order():
    leaves = by_leaf(STATE)
    assert list(leaves.items()) == [
        (Leaf("model", "fc.weight"), 1), (Leaf("model", "fc.bias"), 2), (Leaf("personal", "fc.weight"), 3),
    ]  # fmt: skip
    assert by_slot(leaves) == STATE


def test_names_in_results_have_a_slot_only_where_there_are_several():
    model, both = by_leaf({"model": STATE["model"]}), by_leaf(STATE)
    assert list(short_names(model).values()) == ["fc.weight", "fc.bias"]
    assert list(short_names(both).values()) == ["model:fc.weight", "model:fc.bias", "personal:fc.weight"]
    for leaves in (model, both):
        assert {of_short_name(name): leaf for leaf, name in short_names(leaves).items()} == {k: k for k in leaves}
