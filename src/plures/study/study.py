"""The results of a study, as data frames and comparisons."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from plures.errors import PluresError, PluresWarning
from plures.evaluate.code import NOTHING, Code
from plures.evaluate.results import REFERENCES, Comparison, FederationCard, MethodResult, MetricCard
from plures.extras import needed
from plures.study.estimate import Ahead, ahead
from plures.study.plan import Cell, Plan, Unit, plan_of
from plures.study.reading import parse_study, title
from plures.study.search import optuna_study
from plures.study.store import Store
from plures.study.work import Chosen, counts

if TYPE_CHECKING:
    import optuna

Kind = Literal["pandas", "polars"]
Row = dict[str, Any]


class Study:
    """Results of a study, finished or not; may be read while processes work on it.

    Args:
        folder: the folder that ``plures study`` wrote.
        code: user functions that it may name as methods.

    Attributes:
        plan: cells, methods and units, as the study was last started.

    Raises:
        PluresError: if the folder holds no study.
    """

    def __init__(self, folder: Path | str, code: Code = NOTHING) -> None:
        self._store = Store(Path(folder), create=False)
        faults = self._store.faults
        if faults:
            warnings.warn(
                f"{self._store.file} is damaged: {faults} of its rows, and what depends on them, are left out; "
                "start the study to recompute them",
                PluresWarning,
                stacklevel=2,
            )
        about = self._store.described()
        written = about["text"], about["file"], Path(about["folder"])
        source = parse_study(*written, checked=False, code=code.reading(self._store.file))
        self.plan: Plan = plan_of(source, about["search"])

    @property
    def name(self) -> str:
        return self.plan.source.document.name

    def close(self) -> None:
        """Close the database."""
        self._store.close()

    def ahead(self) -> Ahead:
        """What is done and what is left."""
        return ahead(self.plan, self._store)

    def frame(self, kind: Kind = "pandas") -> Any:
        """One row per cell, method, seed and client, with every metric on the test data at the chosen round.

        Columns: ``data``, ``partition``, ``budget``, ``cell``, ``method``, ``title``, ``family``, ``seed``, ``client``,
        ``unseen`` (held out of training), ``train_examples``, ``test_examples``, ``chosen_round``, then the metrics
        (missing if a task has no such metric), then the clients' metadata as ``client.<column>``.

        Args:
            kind: ``pandas`` or ``polars``.
        """
        return framed(list(self._client_rows()), kind)

    def runs(self, kind: Kind = "pandas") -> Any:
        """One row per final run: settings, the chosen round, mean test metric, bytes, seconds, trials."""
        return framed(list(self._run_rows()), kind)

    def trials(self, kind: Kind = "pandas") -> Any:
        """One row per trial of tuning: setting as JSON, state, best validation, seconds."""
        return framed(list(self._trial_rows()), kind)

    def comparisons(self) -> list[Comparison]:
        """One comparison for each cell, of the methods whose runs are all done.

        A cell without local training, FedAvg and its fine-tuning is left out. The title of the cell is the federation's
        name; ``settings["tuning"]`` gives the number of trials of each method.
        """
        done = self._finals()
        found = []
        for cell in self.plan.cells:
            methods = [m for m in (self._method(cell, label, done) for label in self._labels()) if m is not None]
            if set(REFERENCES) <= {method.name for method in methods}:
                found.append(self._comparison(cell, methods))
        return found

    def optuna(self, cell: str, method: str) -> optuna.Study:
        """The trials of a method on a cell as an Optuna study, for its plots.

        Args:
            cell: title of the cell.
            method: label of the method.

        Raises:
            PluresError: for an unknown name, a method that is not tuned, or if Optuna is missing.
        """
        known = [u for u in self.plan.units if u.kind == "tuning"]
        chosen = [u for u in known if u.cell.title == cell and u.candidate.label == method]
        if not chosen:
            names = ", ".join(sorted({f"({u.cell.title!r}, {u.candidate.label!r})" for u in known})) or "none"
            raise PluresError(f"no tuning of {method!r} on {cell!r}; there are {names}")
        needed("optuna", "the history of a search", "tune")
        unit, search = chosen[0], self.plan.search if self.plan.search != "grid" else "optuna"
        higher = self._metric(unit.cell).higher
        tuning, trials = self.plan.source.document.tuning, self._store.trials(unit.id)
        return optuna_study(unit.candidate, tuning, search, trials, higher=higher)

    # --- rows -----------------------------------------------------------------------------------------------------

    def _labels(self) -> list[str]:
        return [candidate.label for candidate in self.plan.candidates]

    def _finals(self) -> dict[str, tuple[MethodResult, float]]:
        """The finished final runs, each as a method's result with one seed, and their seconds."""
        results, tuned = self._store.results("seed"), self._store.results("tuning")
        known = {cell.key for cell in self.plan.cells if self._store.cell(cell.key) is not None}
        ids = [
            unit.id
            for unit in self.plan.units
            if unit.id in results and unit.cell.key in known and (unit.tuning is None or unit.tuning in tuned)
        ]
        return {id: (MethodResult.model_validate(results[id][0]), results[id][1]) for id in ids}

    def _units(self) -> Iterator[tuple[Unit, MethodResult, float]]:
        done = self._finals()
        for unit in self.plan.units:
            if unit.id in done:
                yield unit, *done[unit.id]

    def _where(self, unit: Unit) -> Row:
        cell = unit.cell
        return {
            "data": cell.data.label or cell.data.name,
            "partition": title(cell.partition),
            "budget": cell.budget.label or f"{cell.budget.rounds} rounds",
            "cell": cell.title,
            "method": unit.candidate.label,
        }

    def _client_rows(self) -> Iterator[Row]:
        cards = {cell.key: self._card(cell) for cell in self.plan.cells if self._store.cell(cell.key) is not None}
        units = list(self._units())
        metrics = list(dict.fromkeys(m for _, result, _ in units for m in result.seeds[0].test.metrics))
        keys = list(dict.fromkeys(key for card in cards.values() for key in card.metadata))
        for unit, result, _ in units:
            run, card = result.seeds[0], cards[unit.cell.key]
            place = {client: number for number, client in enumerate(card.clients)}
            about = self._where(unit) | {"title": result.title, "family": result.family, "seed": run.seed}
            for unseen, scores in ((False, run.test), (True, run.unseen)):
                for i, client in enumerate([] if scores is None else scores.clients):
                    assert scores is not None
                    at = place.get(client)
                    yield about | {
                        "client": client,
                        "unseen": unseen,
                        "train_examples": 0 if at is None else card.sizes["train"][at],
                        "test_examples": scores.sizes[i],
                        "chosen_round": run.chosen_round,
                        **{name: scores.metrics[name][i] if name in scores.metrics else None for name in metrics},
                        **{f"client.{key}": _fact(card.metadata, key, at) for key in keys},
                    }

    def _run_rows(self) -> Iterator[Row]:
        for unit, result, seconds in self._units():
            run, metric = result.seeds[0], self._metric(unit.cell)
            values = run.test.values(metric.name)
            yield self._where(unit) | {
                "title": result.title,
                "seed": run.seed,
                "lr": result.lr,
                "parameters": json.dumps(result.parameters),
                "chosen_round": run.chosen_round,
                "metric": metric.name,
                "validation": max(run.curve, key=lambda point: point.round == run.chosen_round).validation,
                "test": float(values[values == values].mean()) if (values == values).any() else None,
                "bytes": run.curve[-1].bytes,
                "seconds": seconds,
                **{f"trials_{state}": count for state, count in self._counts(unit).items()},
            }

    def _counts(self, unit: Unit) -> dict[str, int]:
        return counts([] if unit.tuning is None else self._store.trials(unit.tuning))

    def _trial_rows(self) -> Iterator[Row]:
        for unit in self.plan.units:
            if unit.kind == "tuning":
                for tried in self._store.trials(unit.id):
                    yield self._where(unit) | {
                        "number": tried.number,
                        "state": tried.state,
                        "setting": json.dumps(tried.setting),
                        "rounds": max(tried.curve, default=0),
                        "validation": tried.validation if tried.validation == tried.validation else None,
                        "seconds": tried.seconds,
                    }

    # --- comparisons ----------------------------------------------------------------------------------------------

    def _card(self, cell: Cell) -> FederationCard:
        row = self._store.cell(cell.key)
        assert row is not None, "a cell with results was described before"
        return FederationCard.model_validate_json(row["card"]).model_copy(update={"name": cell.title})

    def _metric(self, cell: Cell) -> MetricCard:
        row = self._store.cell(cell.key)
        if row is None:
            raise PluresError(f"nothing is known about {cell.title!r} yet: run the study first")
        return MetricCard.model_validate_json(row["metric"])

    def _method(self, cell: Cell, label: str, done: Mapping[str, tuple[MethodResult, float]]) -> MethodResult | None:
        """A method on a cell with all its seeds, or ``None`` if some are missing."""
        units = [u for u in self.plan.units if u.cell is cell and u.candidate.label == label and u.kind == "seed"]
        if not units or any(unit.id not in done for unit in units):
            return None
        results = [done[unit.id][0] for unit in units]
        return results[0].model_copy(update={"seeds": [result.seeds[0] for result in results]})

    def _comparison(self, cell: Cell, methods: list[MethodResult]) -> Comparison:
        row, document = self._store.cell(cell.key), self.plan.source.document
        assert row is not None
        units = {u.candidate.label: u for u in self.plan.units if u.cell is cell and u.kind == "seed"}
        results = self._store.results("tuning")

        def told(label: str) -> dict[str, Any]:
            tuning = units[label].tuning
            if tuning is None:
                return {"search": "none", "finished": 0, "pruned": 0, "repeated": 0, "seconds": 0.0}
            return Chosen.model_validate(results[tuning][0]).model_dump(exclude={"setting"})

        budget = cell.budget.model_dump(exclude={"label", "every"})
        settings = budget | {
            "study": self.name,
            "cell": cell.title,
            "data": cell.data.name,
            "data_options": cell.data.options,
            "partition": title(cell.partition),
            "model": cell.data.model,
            "model_options": cell.data.model_options,
            "unseen": cell.data.unseen,
            "read_validation_every": cell.every,
            "seeds": len(document.seeds),
            "tune_rounds": document.tuning.rounds,
            "tuning": {method.name: told(method.name) for method in methods},
        }
        return Comparison(
            federation=self._card(cell),
            metric=self._metric(cell),
            methods=methods,
            settings=settings,
            environment=json.loads(row["environment"]),
        )


def _fact(metadata: Mapping[str, Sequence[str]], key: str, at: int | None) -> str | None:
    return None if at is None or key not in metadata else metadata[key][at]


def framed(rows: Sequence[Row], kind: Kind) -> Any:
    """Rows as a frame of pandas or polars."""
    if kind == "pandas":
        return needed("pandas", "a frame", "frames").DataFrame.from_records(rows)
    if kind == "polars":
        return needed("polars", "a frame", "frames").DataFrame(rows, infer_schema_length=None)
    raise PluresError(f"frame of kind {kind!r}: choose pandas or polars")
