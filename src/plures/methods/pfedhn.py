"""pFedHN, personalized federated hypernetworks."""

from dataclasses import replace

from plures.method import SGD, Generated, Method, Personal, Phase, Predict, Selector, Shared, buffers, role
from plures.methods.entry import entry, require


@entry("pFedHN", "generation", "Shamsian, Navon, Fetaya, Chechik 2021, ICML, Algorithm 1", {"lr": (0.001, 0.01, 0.1)})
def pfedhn(
    part: str | Selector = "model",
    columns: tuple[str, ...] = (),
    lr: float = 0.01,
    size: int | None = None,
    hidden: tuple[int, ...] = (100, 100, 100),
    steps: int | None = None,
    visits: int = 5,
) -> Method:
    """A network at the server, the hypernetwork, generates every client's model from the client's embedding.

    ``min_(phi, e) sum_i f_i(h(phi, e_i))``. A client trains the model it gets and returns the change ``Delta_i``; the
    server follows ``J_phi^T Delta_i`` and ``J_e^T Delta_i``. Embeddings are learned, or made from metadata, so that an
    unseen client gets its model at once. Running statistics are not generated: they stay with the client.

    Args:
        part: what is generated: ``model``, a role (``head``, ``adapter``), or a selector; the rest is shared.
        columns: metadata columns that make the embedding; empty for free embeddings.
        lr: learning rate of hypernetwork and embeddings (SGD with momentum 0.9, weight decay 1e-3, clipped at 50).
        size: length of free embeddings; default: 1 + a quarter of the number of clients.
        hidden: units of the hidden layers.
        steps: local steps; default: the run's (the paper uses 50).
        visits: visits in which an unseen client fits its free embedding.
    """
    require(lr > 0 and (steps is None or steps >= 1), f"pfedhn: lr={lr} must be positive, steps={steps} at least 1")
    chosen = role(part) if isinstance(part, str) and part != "model" else part
    generated = Generated(columns, size, hidden, SGD(lr, momentum=0.9, weight_decay=1e-3))
    statistics = buffers & chosen if isinstance(chosen, Selector) else buffers
    return Method(
        layout={
            replace(statistics, empty="fine"): Personal(unseen="mean"),
            chosen: generated,
            **({} if chosen == "model" else {"model": Shared()}),
        },
        schedule=(Phase(steps=steps),),
        predict=Predict(visits=0 if columns else visits),
    )
