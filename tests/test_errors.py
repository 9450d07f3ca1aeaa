"""Messages about unknown names: the name that was probably meant, or the known names."""

from plures.errors import closest, suggestion


def test_the_closest_name_is_named_whatever_its_case():
    assert closest("Standardise", ["seed", "standardize"]) == "standardize"
    assert closest("x", ["seed", "standardize"]) is None
    assert suggestion("sead", ["seed", "name"]) == "did you mean 'seed'?"


def test_without_a_close_name_at_most_twelve_are_listed():
    assert suggestion("x", ["seed", "name"]) == "there are seed, name"
    assert suggestion("x", []) == "there is none"
    told = suggestion("x", [f"method{number}" for number in range(60)])
    assert told.count("method") == 12
    assert told.endswith("method11 and 48 more")


def test_numbers_count_as_their_text():
    assert suggestion(31, [1, 3]) == "did you mean '3'?"
