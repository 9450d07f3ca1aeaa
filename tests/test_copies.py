"""Methods and errors are themselves after pickling and after a deep copy."""

from __future__ import annotations

import copy
import pickle

import plures
from plures import METHODS
from plures.evaluate.spec import find_method


def test_every_method_of_the_catalogue_is_itself_after_a_round_trip():
    composed = [find_method(name) for name in ("ditto(lam=0.5)", "ifca+fedrep", "ditto+topk(0.2)")]
    for entry in (*METHODS.values(), *composed):
        for again in (pickle.loads(pickle.dumps(entry)), copy.deepcopy(entry)):
            assert (again.name, again.fixed, again.origin) == (entry.name, entry.fixed, entry.origin)
            assert again.same(entry), entry.name


def test_an_error_keeps_its_words():
    for error in (plures.PluresError("give more"), plures.PluresWarning("give more")):
        again = pickle.loads(pickle.dumps(error))
        assert (type(again), str(again)) == (type(error), "give more")
