"""Authors at a keyboard: a published network, and heads of their own on it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import plures
from located import needs
from plures.cases import Case, Part, answer, conduct
from plures.cases.keyboard import AUTHORS, adapters_against_heads, as_published, personal_head, public_text
from plures.run import Execution

LOOP = Execution(backend="loop", compile=False)


def test_a_part_may_start_from_a_trained_network_and_one_may_leave_it_as_it_is():
    heart = plures.load("heart")
    torch.manual_seed(0)
    network = plures.default_model(heart)()
    asked: list[bool] = []

    def start(quick: bool) -> torch.nn.Module:
        asked.append(quick)
        return network

    own = ("plures.cases.keyboard:as_published", "plures.cases.keyboard:personal_head")
    options = {"metric": ["loss", "accuracy"]}
    part = Part("toy", "A toy", "heart", own, start=start, options=options, notes=adapters_against_heads)
    case = Case("toy", "Somebody", "What now?", (part,), "nothing.")
    (found,) = conduct(case, quick=True, execution=LOOP)
    assert asked == [True]
    assert "personalization" in answer(case, [found]).lower()
    right = [
        float((network(heart.inputs[rows]).argmax(1) == heart.targets[rows]).float().mean())
        for rows in heart.splits["test"]
    ]
    assert found.method("as_published").per_client("accuracy").tolist() == pytest.approx(right)
    assert found.method("personal_head").bytes_up == 0
    first, second = adapters_against_heads(found)
    loss, share = (np.mean(found.method("as_published").per_client(name)) for name in ("loss", "accuracy"))
    assert first.startswith(f"As published: {found.metric.title} {loss:.3f}, accuracy {100 * share:.1f} %, 0.0 kB")
    assert second.startswith("Personal head: ")


@needs("shakespeare")
def test_nothing_that_an_author_says_is_in_the_public_text():
    text, authors = public_text(), plures.load("shakespeare", **AUTHORS)
    code = torch.randint(2**62, text.inputs.shape[1:], generator=torch.Generator().manual_seed(0))
    said, public = authors.inputs @ code, text.inputs[text.splits["train"][0]] @ code
    assert len(public) > 10 * len(said)
    assert not bool(torch.isin(said, public).any())
    assert bool(torch.isin(said, text.inputs @ code).all())


def test_only_the_head_of_an_author_changes():
    heart = plures.load("heart")
    network = plures.default_model(heart)()
    for method, changes in ((personal_head(), True), (as_published(), False)):
        run = plures.Run(heart, network, method, plures.Training(rounds=1), execution=LOOP)
        run.step()
        for name, values in run.predictors([0, 1]).items():
            same = torch.equal(values[0], network.state_dict()[name])
            assert same is not (changes and name.startswith("head."))
