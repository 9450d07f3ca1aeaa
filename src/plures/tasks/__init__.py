"""What is predicted: tasks define targets, outputs, losses, probabilities, decisions. They depend only on metrics."""

from plures.tasks.binary import Binary
from plures.tasks.choose import KINDS, task_of
from plures.tasks.classification import Classification
from plures.tasks.counts import Counts
from plures.tasks.forecast import Forecast
from plures.tasks.losses import Weights
from plures.tasks.multilabel import MultiLabel
from plures.tasks.positions import NextToken, Segmentation
from plures.tasks.quantile import Quantile
from plures.tasks.ratings import Ratings
from plures.tasks.regression import Regression
from plures.tasks.robust import Huber
from plures.tasks.stored import completed, completion, from_dict, to_dict
from plures.tasks.survival import Survival
from plures.tasks.task import Loss, Task

__all__ = [
    "KINDS",
    "Binary",
    "Classification",
    "Counts",
    "Forecast",
    "Huber",
    "Loss",
    "MultiLabel",
    "NextToken",
    "Quantile",
    "Ratings",
    "Regression",
    "Segmentation",
    "Survival",
    "Task",
    "Weights",
    "completed",
    "completion",
    "from_dict",
    "task_of",
    "to_dict",
]
