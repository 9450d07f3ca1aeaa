"""What is predicted: tasks define targets, outputs, losses, probabilities, decisions. They depend only on metrics."""

from plures.tasks.choose import KINDS, task_of
from plures.tasks.classification import Classification
from plures.tasks.losses import Weights
from plures.tasks.multilabel import MultiLabel
from plures.tasks.regression import Regression
from plures.tasks.stored import completed, completion, from_dict, to_dict
from plures.tasks.survival import Survival
from plures.tasks.task import Loss, Task

__all__ = [
    "KINDS",
    "Classification",
    "Loss",
    "MultiLabel",
    "Regression",
    "Survival",
    "Task",
    "Weights",
    "completed",
    "completion",
    "from_dict",
    "task_of",
    "to_dict",
]
