"""Studies: data sets, partitions, methods, seeds and budgets in one file, planned, executed and queried.

The folder of a study holds

- ``study.db``: one SQLite database with the document, the facts of each cell's data, every unit with its state and
  result, and every trial of tuning (``trials``: setting, validation curve, state). It is the only storage of tuning,
  too: :meth:`Study.optuna` gives a method's trials as an Optuna study;
- ``checkpoints/``: unfinished final runs as safetensors, deleted when a run is done;
- ``runs/CELL/METHOD/seed-N/``: the models of final runs (:class:`~plures.evaluate.RunFolder`), unless
  ``keep_models = false``.

    >>> from plures.study import Study
    >>> frame = Study("runs/reduced").frame()                                              # doctest: +SKIP
    >>> frame.groupby(["cell", "method"])["accuracy"].mean().unstack()                     # doctest: +SKIP
"""

from plures.study.conduct import Event, begin, conduct
from plures.study.estimate import Ahead, ahead, duration
from plures.study.plan import Plan, plan_of
from plures.study.reading import parse_study, read_study
from plures.study.search import resolved
from plures.study.store import Store, recover
from plures.study.study import Study

__all__ = [
    "Ahead",
    "Event",
    "Plan",
    "Store",
    "Study",
    "ahead",
    "begin",
    "conduct",
    "duration",
    "parse_study",
    "plan_of",
    "read_study",
    "recover",
    "resolved",
]
