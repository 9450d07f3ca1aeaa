"""DAPPER, local data mixed with a public sample."""

from dataclasses import replace

from torch import Tensor

from plures.method import Batch, Frozen, Leaves, Method, Personal, Phase, Predict, Start, State
from plures.methods.entry import entry, remark, require


@entry("DAPPER", "interpolation", "Mansour, Mohri, Ro, Suresh 2020, arXiv:2002.10619", {"lam": (0.25, 0.5, 0.75)})
def dapper(lam: float = 0.5, public_batch: int | None = 32, visits: int = 5) -> Method:
    """Each client trains its own model on a mixture of its own data and a public sample held by the server.

    ``min_{h_i} lam f_i(h_i) + (1 - lam) f_C(h_i)``, ``f_C`` the loss on the public sample C. The sample is sent once;
    afterwards nothing is sent. Running statistics are those of the client's own data. The federation must have public
    rows; see :meth:`~plures.federation.Federation.donate`.

    Args:
        lam: weight of the client's own data.
        public_batch: public examples drawn with replacement in each step; ``None`` for all of them.
        visits: visits an unseen client makes to train its model.
    """
    require(0 <= lam <= 1, f"dapper: lam={lam} must lie in [0, 1]")
    require(public_batch is None or public_batch > 0, f"dapper: public_batch={public_batch} must be positive")
    remark(lam == 1, "dapper with lam=1 is local training")

    def sample(start: Start) -> Leaves:
        public = start.setting.public
        require(
            len(public[0]) > 0,
            "dapper trains on examples that the server holds, but this federation has none: let clients give some with "
            "federation.donate(share=0.1)",
        )
        return dict(zip(("inputs", "targets", "weight"), public, strict=False))

    def drawn(x: State, batch: Batch) -> Batch:
        public, count = dict(x.public), len(x.public["inputs"])
        if public_batch is not None and public_batch < count:
            rows = (batch.uniform(public_batch) * count).long()
            public = {name: t[rows] for name, t in public.items()}
        return replace(batch, inputs=public["inputs"], targets=public["targets"], weight=public.get("weight"))

    def both(x: State, received: State, batch: Batch) -> Tensor:
        common = drawn(x, batch).loss(x.model)
        return lam * batch.loss(x.model) + (1 - lam) * common

    return Method(
        layout={"model": Personal(), "public": Frozen()},
        slots={"public": sample},
        schedule=(Phase(objective=both, random=public_batch is not None),),
        predict=Predict("model", visits=visits),
    )
