"""Made-up comparisons with realistic numbers and known answers."""

from __future__ import annotations

from typing import Any

import numpy as np

from plures.evaluate.record import Calibration, ClientValues, Details, Layer, Mistake, Move, Personal
from plures.evaluate.results import (
    ClientScores,
    Comparison,
    FederationCard,
    MethodResult,
    MetricCard,
    Point,
    SeedResult,
    Trial,
)

ACCURACY = MetricCard(name="accuracy", title="accuracy", higher=True, percent=True)
RMSE = MetricCard(name="rmse", title="root mean squared error", higher=False, percent=False)
TITLES = {
    "local": "Local only",
    "fedavg": "FedAvg",
    "fedavg_ft": "FedAvg + fine-tuning",
    "ditto": "Ditto",
    "apfl": "APFL",
    "fedrep": "FedRep",
    "fedbn": "FedBN",
    "ifca": "IFCA",
    "lgfedavg": "LG-FedAvg",
}
LIFT = {
    "local": 0.0,
    "fedavg": -0.035,
    "fedavg_ft": 0.035,
    "ditto": 0.058,
    "apfl": 0.04,
    "fedrep": 0.03,
    "fedbn": 0.012,
    "ifca": 0.022,
    "lgfedavg": 0.004,
}
SPREAD = {"fedavg": 0.09, "ifca": 0.05, "ditto": 0.014, "fedavg_ft": 0.02, "local": 0.0}


def scores(clients: list[str], values: np.ndarray, sizes: list[int], kind: str) -> ClientScores:
    first = [None if np.isnan(v) else float(v) for v in values]
    other = [None if v is None else 0.3 * (1 - v) + 0.01 if kind == "classification" else v * 0.8 for v in first]
    names = ("accuracy", "ece") if kind == "classification" else ("rmse", "mae")
    return ClientScores(clients=clients, sizes=sizes, metrics=dict(zip(names, (first, other), strict=True)))


def comparison(
    *,
    clients: int = 30,
    seeds: int = 5,
    names: tuple[str, ...] = tuple(TITLES),
    federation: str = "Ward sensors",
    kind: str = "classification",
    missing: bool = True,
    unseen: int = 0,
    rounds: int = 100,
    lift: dict[str, float] | None = None,
    client_names: list[str] | None = None,
    details: bool = False,
) -> Comparison:
    """A comparison of the given shape; ``lift`` is each method's mean gain over local-only training."""
    rng = np.random.default_rng(7)
    regression = kind == "regression"
    people = client_names or [f"person {i + 1:02d}" for i in range(clients)]
    train = rng.lognormal(4.6, 0.7, clients).astype(int) + 12
    test = [int(n) // 4 + 3 for n in train]
    if missing:
        test[3] = 0
    base = np.clip(0.82 + 0.07 * rng.standard_normal(clients), 0.5, 0.97)
    methods = []
    for place, name in enumerate(names):
        mean = (lift or LIFT)[name]
        gain = mean + SPREAD.get(name, 0.03) * rng.standard_normal(clients)
        personal = np.clip(base + gain, 0.2, 0.995)
        runs = []
        for seed in range(seeds):
            value = np.clip(personal + 0.012 * rng.standard_normal(clients), 0, 1)
            value = 0.9 - 0.6 * value if regression else value
            if missing:
                value[3] = np.nan
            level = float(np.nanmean(value))
            start = 0.75 if regression else 0.17
            curve = [
                Point(
                    round=r,
                    train_loss=float(2 * np.exp(-r / 20) + 0.1),
                    validation=float(
                        level
                        + (start - level) * np.exp(-r / (9 + 2 * place))
                        - (1 if not regression else -1) * 0.0004 * max(0, r - 70)
                        + 0.006 * rng.standard_normal()
                    ),
                    bytes=0 if name == "local" else r * clients * 2 * (400_000 - 30_000 * place),
                    seconds=r * (0.31 + 0.05 * place),
                )
                for r in range(0, rounds + 1, 2)
            ]
            best = (min if regression else max)(curve, key=lambda p: p.validation)
            held = None
            if unseen:
                far = np.clip(0.78 + mean + 0.05 * rng.standard_normal(unseen), 0, 1)
                held = scores([f"new person {i + 1}" for i in range(unseen)], far, [25] * unseen, kind)
            runs.append(
                SeedResult(
                    seed=seed,
                    curve=curve,
                    chosen_round=best.round,
                    validation=scores(people, value, test, kind),
                    test=scores(people, value, test, kind),
                    test_last=scores(people, value - 0.002, test, kind),
                    unseen=held,
                    details=told(people, test, name, seed, regression, held) if details else None,
                )
            )
            if details:
                runs[-1] = runs[-1].model_copy(update={"curve": traced(runs[-1].curve, value)})
        travels = 0 if name == "local" else 400_000 - 30_000 * place
        parameters: dict[str, Any] = {"lam": 0.5} if name == "ditto" else {"epochs": 3} if name == "fedavg_ft" else {}
        trials = [
            Trial(
                lr=lr,
                parameters={**parameters, **({"lam": lam} if name == "ditto" else {})},
                validation=0.8 - abs(lr - 0.03) - 0.1 * abs(lam - 0.5),
            )
            for lr in (0.01, 0.03, 0.1)
            for lam in ((0.1, 0.5, 1.0) if name == "ditto" else (0.5,))
        ]
        methods.append(
            MethodResult(
                name=name,
                title=TITLES[name],
                family="baseline" if place < 3 else "regularised",
                citation="Li, Hu, Beirami, Smith 2021, ICML, Algorithm 1, https://arxiv.org/abs/2012.04221",
                lr=0.03,
                parameters=parameters,
                trials=trials,
                bytes_up=travels,
                bytes_down=travels,
                stored=400_000 if name != "fedavg" else 0,
                flops=12_300_000 * (1 + place),
                seeds=runs,
            )
        )
    labels = np.array([rng.multinomial(int(n), rng.dirichlet([0.6] * 6)) for n in train])
    everyone = FederationCard(
        name=federation,
        kind=kind,
        classes=[] if regression else ["walking", "upstairs", "downstairs", "sitting", "standing", "lying"],
        clients=people,
        sizes={"train": train.tolist(), "validation": test, "test": test},
        labels=[] if regression else labels.tolist(),
        metadata={
            "ward": [("A", "B", "C")[i % 3] for i in range(clients)],
            "device": [("wrist", "hip")[i % 2] for i in range(clients)],
        },
        source="Made up for tests; public domain, https://example.org/data",
    )
    return Comparison(
        federation=everyone,
        metric=RMSE if regression else ACCURACY,
        methods=methods,
        settings={
            "rounds": rounds,
            "seeds": seeds,
            "cohort": 10,
            "epochs": 2,
            "batch": 32,
            "clip": None,
            "options": {},
            "tuning": {"rounds": 30, "lr": [0.01, 0.03, 0.1]},
        },
        environment={"plures": "0.1.0", "python": "3.12.4", "torch": "2.8.0", "device": "cpu"},
    )


def traced(curve: list[Point], value: np.ndarray) -> list[Point]:
    """The curve with every client's value, which differs from the mean by as much as at the end."""
    off = value - np.nanmean(value)
    return [
        p.model_copy(update={"clients": [None if np.isnan(o) else float(p.validation + o) for o in off]}) for p in curve
    ]


def told(
    people: list[str], sizes: list[int], name: str, seed: int, regression: bool, held: ClientScores | None
) -> Details:
    """Made-up details: six classes, two clusters for IFCA, personal parts for all but FedAvg."""
    rng = np.random.default_rng(seed)
    count = len(people)
    confusion = [np.diag(rng.multinomial(n, [1 / 6] * 6)) for n in sizes]
    for own in confusion:
        own[0, 1] += 1
        own[0, 0] = max(0, own[0, 0] - 1)
    examples = np.array([rng.multinomial(n, [0.1] * 10) for n in sizes])
    centre = (np.arange(10) + 0.5) / 10
    calibration = Calibration(
        examples=examples.tolist(),
        confidence=(examples * centre).tolist(),
        correct=np.round(examples * centre * 0.9).astype(int).tolist(),
    )
    layers = [
        Layer(
            name=layer,
            size=100,
            norm=rng.uniform(2, 3, count).tolist(),
            distance=rng.uniform(0, 1, count).tolist(),
            cosine=rng.uniform(0.5, 1, count).tolist(),
        )
        for layer in ("body.0", "head")
    ]
    personal = Personal(
        layers=layers,
        same=50,
        places=[(float(x), float(y)) for x, y in rng.standard_normal((count, 2))],
        explained=(0.6, 0.25),
        peers=[[j for j in range(count) if j != i][:5] for i in range(count)],
    )
    clustered = name == "ifca"
    return Details(
        calibration=None if regression else calibration,
        confusion=[] if regression else [own.tolist() for own in confusion],
        mistakes=[
            [Mistake(row=i, loss=2.5, truth="walking", predicted="upstairs", confidence=0.9)] for i in range(count)
        ],
        personal=None if name == "fedavg" else personal,
        clusters={"model": [i % 2 for i in range(count)]} if clustered else {},
        moves=[Move(round=2, block="model", client=people[1], cluster=1)] if clustered else [],
        cold={} if held is None else {budget: ClientValues(**held.model_dump()) for budget in ("0", "5", "all")},
    )


def scored(
    values: dict[str, list[list[float | None]]],
    *,
    metric: MetricCard = ACCURACY,
    sizes: tuple[int, ...] = (10, 20, 30, 40),
    titles: dict[str, str] | None = None,
) -> Comparison:
    """A comparison with exactly these test values: method to one list of clients per seed."""
    clients = [f"client {i}" for i in range(len(sizes))]
    kind = "classification" if metric.percent else "regression"
    methods = []
    for name, seeds in values.items():
        runs = []
        for seed, clients_values in enumerate(seeds):
            found = scores(clients, np.array(clients_values, dtype=float), list(sizes), kind)
            travelled = 300_000 * len(sizes)
            curve = [
                Point(round=r, train_loss=1.0, validation=0.1 * (r + seed), bytes=travelled * r, seconds=0.5 * r + seed)
                for r in (0, 2, 4)
            ]
            runs.append(
                SeedResult(seed=seed, curve=curve, chosen_round=4, validation=found, test=found, test_last=found)
            )
        methods.append(
            MethodResult(
                name=name,
                title=(titles or TITLES)[name],
                family="any",
                citation="none",
                lr=0.1,
                parameters={},
                trials=[],
                bytes_up=100_000,
                bytes_down=200_000,
                stored=0,
                flops=1,
                seeds=runs,
            )
        )
    card = FederationCard(
        name="four",
        kind=kind,
        classes=["a", "b"] if metric.percent else [],
        clients=clients,
        sizes={"train": list(sizes), "test": list(sizes)},
        labels=[[n, 0] for n in sizes] if metric.percent else [],
        metadata={},
        source="",
    )
    return Comparison(federation=card, metric=metric, methods=methods, settings={}, environment={})
