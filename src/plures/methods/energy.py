"""Energy-aware association of clients with edges."""

from collections.abc import Sequence

from torch import Tensor

from plures.method import Clustered, EnergyAware, Method
from plures.methods.entry import entry


@entry(
    "Energy-aware association",
    "edge",
    "Li, Qin, Chen, Han, Zhang 2022, IEEE TVT (from its abstract)",
    {"gamma": (0.0, 0.1, 1.0, 10.0)},
)
def energy(links: str | Sequence[str] | Tensor = "group", gamma: float = 1.0, rounds: int = 1) -> Method:
    """FedAvg inside each edge; clients are assigned to edges with cheap links and similar models.

    ``min_z sum_i E[i, z_i] + gamma sum_i ||x_i - mean of edge z_i||^2`` with the models ``x_i`` that the clients last
    sent, solved by the server every few rounds. Bytes are those between clients and edges. The paper learns the
    association, together with the radio resources, by reinforcement learning; this keeps its trade-off.

    Args:
        links: a metadata column with each client's home edge (a link home costs 0, any other 1), metadata columns with
            the energy of the link to each edge, or the energies themselves, ``(clients, edges)``.
        gamma: energy that a squared unit of dispersion is worth; 0 takes the cheapest edges, a large number clusters
            by similarity alone.
        rounds: rounds between associations.
    """
    return Method(layout={"model": Clustered(1, EnergyAware(links, gamma, rounds), same_start=True)})
