"""Build a federation from arrays, a PyTorch dataset or a folder: a file per source, then one way for all."""

from plures.federation.build.arrays import from_arrays
from plures.federation.build.assemble import assemble, train_rows
from plures.federation.build.columns import by_content
from plures.federation.build.dataset import from_dataset
from plures.federation.build.examples import Examples, of_arrays
from plures.federation.build.folder import from_folder
from plures.federation.build.keys import keys_of_texts
from plures.federation.build.options import Options
from plures.federation.build.pictures import from_pictures
from plures.federation.build.sounds import from_sounds

__all__ = [
    "Examples",
    "Options",
    "assemble",
    "by_content",
    "from_arrays",
    "from_dataset",
    "from_folder",
    "from_pictures",
    "from_sounds",
    "keys_of_texts",
    "of_arrays",
    "train_rows",
]
