"""plures: one federation, many models.

Personalized federated learning: every client gets its own model and still learns from all the others.
"""

from plures.errors import PluresError, PluresWarning
from plures.evaluate import Code, Comparison, RunFolder, RunSpec, compare, fit, predictions, score
from plures.federation import (
    Federation,
    from_arrays,
    from_dataset,
    from_folder,
    from_pictures,
    from_sounds,
    load,
)
from plures.method import SGD, Adam, AdamW, Method
from plures.methods import METHODS
from plures.metrics import Metric, Predictions
from plures.models import default_model, with_roles
from plures.run import BySize, Execution, Fixed, Full, Poisson, Run, Training, Uniform, onboard
from plures.tables import from_table
from plures.tasks import Classification, MultiLabel, Regression, Task
from plures.version import __version__

__all__ = [
    "METHODS",
    "SGD",
    "Adam",
    "AdamW",
    "BySize",
    "Classification",
    "Code",
    "Comparison",
    "Execution",
    "Federation",
    "Fixed",
    "Full",
    "Method",
    "Metric",
    "MultiLabel",
    "PluresError",
    "PluresWarning",
    "Poisson",
    "Predictions",
    "Regression",
    "Run",
    "RunFolder",
    "RunSpec",
    "Task",
    "Training",
    "Uniform",
    "__version__",
    "compare",
    "default_model",
    "fit",
    "from_arrays",
    "from_dataset",
    "from_folder",
    "from_pictures",
    "from_sounds",
    "from_table",
    "load",
    "onboard",
    "predictions",
    "score",
    "with_roles",
]
