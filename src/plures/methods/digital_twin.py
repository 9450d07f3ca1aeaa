"""Synchronisation of digital twins: moving groups, stale clients count less."""

from collections.abc import Callable

from torch import Tensor

from plures.method import AGE, By, Clustered, Combine, Known, Method, Setting, Shared, State, Timed
from plures.methods.entry import entry, require


@entry(
    "Digital-twin synchronisation",
    "edge",
    "Han et al. 2022, IEEE Internet of Things Journal (from its abstract)",
    {"staleness": (0.0, 0.5, 1.0)},
)
def digital_twin(
    staleness: float = 0.5,
    groups: str | Callable[[int, Setting], Tensor] | None = None,
    providers: int = 2,
) -> Method:
    """Devices train the model of their current provider, and count less the longer they have been away.

    ``p_i ~ n_i (1 + age_i)^-a`` with ``age_i`` the rounds that client i has missed since it last took part, 0 before
    its first. The paper lets devices choose providers in an evolutionary game and providers choose the intensity of
    synchronisation; here the membership is given, as a function of time.

    Args:
        staleness: the exponent ``a``; 0 is FedAvg.
        groups: a function ``(round, setting) -> (clients,)`` of provider numbers; a metadata column, for fixed groups;
            or ``None`` for a single provider.
        providers: number of providers, if ``groups`` is a function.
    """
    require(staleness >= 0, f"digital_twin: staleness={staleness} must not be negative")
    require(providers >= 1, f"digital_twin: providers={providers} must be at least 1")

    def weigh(x: State) -> Tensor:
        return x.twin["examples"] * (1 + x.twin[AGE]) ** -staleness

    def member(round: int, setting: Setting) -> Tensor:
        assert callable(groups)
        found = groups(round, setting)
        fits = found.shape == (len(setting),) and bool(((found >= 0) & (found < providers)).all())
        require(fits, f"digital_twin: groups in round {round} must be a number below {providers} for each client")
        return found

    share: Clustered | Shared = Shared()
    if groups is not None:
        kind = By(groups) if isinstance(groups, str) else Timed(member)
        share = Clustered(1 if isinstance(groups, str) else providers, kind, same_start=True)
    return Method(layout={"model": share, "twin": Known("examples", AGE)}, combine=Combine(weigh))
