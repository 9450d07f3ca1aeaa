"""With whom a block of leaves is shared: ``share.py`` says what a share is, then one file for each kind.

Clusters: who is in which (``clusters.py``), found from uploads (``splitting.py``) or by links (``association.py``).
A model for every client: mixed by a matrix, with views of others' models (``mixing.py``), or generated from an
embedding (``generated.py``). Whose models newcomers inherit: ``inherit.py``.
"""
