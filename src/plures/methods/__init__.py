"""The methods, one short file each, and their catalogue."""

from collections.abc import Mapping

from plures.methods.apfl import apfl
from plures.methods.ditto import ditto
from plures.methods.entry import Entry
from plures.methods.fedavg import fedavg
from plures.methods.fedavg_ft import fedavg_ft
from plures.methods.fedbabu import fedbabu
from plures.methods.fedbn import fedbn
from plures.methods.fedper import fedper
from plures.methods.fedprox import fedprox
from plures.methods.fedrep import fedrep
from plures.methods.ifca import ifca
from plures.methods.lgfedavg import lgfedavg
from plures.methods.local import local
from plures.methods.perfedavg import perfedavg
from plures.methods.pfedme import pfedme
from plures.methods.scaffold import scaffold

CATALOGUE: Mapping[str, Entry] = {
    method.name: method
    for method in (
        local,
        fedavg,
        fedavg_ft,
        fedprox,
        scaffold,
        ditto,
        pfedme,
        apfl,
        perfedavg,
        fedper,
        fedrep,
        fedbabu,
        lgfedavg,
        fedbn,
        ifca,
    )
}

__all__ = [
    "CATALOGUE",
    "Entry",
    "apfl",
    "ditto",
    "fedavg",
    "fedavg_ft",
    "fedbabu",
    "fedbn",
    "fedper",
    "fedprox",
    "fedrep",
    "ifca",
    "lgfedavg",
    "local",
    "perfedavg",
    "pfedme",
    "scaffold",
]
