"""From measured numbers to advice."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence

from plures.diagnose.clusters import STRUCTURE
from plures.diagnose.families import FAMILIES
from plures.diagnose.result import LEVEL, Advice, FamilyAdvice, Findings, Reason
from plures.diagnose.rules import CONCEPT, FEATURES, LABELS, POOR, RULES, UNEQUAL, Rule

MARGIN = 0.5
"""Points by which a family must lead FedAvg, fine-tuned or not, to be expected to beat it."""
PLAIN = ("finetune", "global")


def fires(found: Findings) -> dict[str, bool]:
    """Which differences are significant and large enough to matter."""
    q = found.quality
    return {
        "labels": found.labels.p <= LEVEL and found.labels.excess >= LABELS,
        "quantity": found.quantity.gini >= UNEQUAL,
        "quality": any(amount >= POOR for amount in poorness(found)),
        "features": found.features.p <= LEVEL and found.features.share >= FEATURES,
        "concept": found.concept.p <= LEVEL and found.concept.gain >= CONCEPT,
        "clusters": found.clusters.beyond_labels,
        "missing": q.missing_spread >= POOR and (q.missing_p is None or q.missing_p <= LEVEL),
    }


def poorness(found: Findings) -> tuple[float, float, float]:
    """Spread over clients of missing shares, of noise and of reported reliability; 0 if it may be chance."""
    q = found.quality
    missing = q.missing_spread if q.missing_p is None or q.missing_p <= LEVEL else 0.0
    noise = q.noise_spread if q.noise_p is not None and q.noise_p <= LEVEL else 0.0
    return missing, noise, q.reliability_spread or 0.0


def numbers(found: Findings) -> dict[str, float]:
    """The numbers that rules read, by name; NaN if not measured."""
    there = fires(found)
    match = found.clusters.matches[0] if found.clusters.matches else None
    return {
        **{name: float(found_there) for name, found_there in there.items()},
        "differ": float(there["labels"] or there["features"] or there["concept"]),
        "groups": float(there["clusters"]),
        "label_groups": float(
            not there["clusters"]
            and found.clusters.p is not None
            and found.clusters.p <= LEVEL
            and found.clusters.silhouette >= STRUCTURE
            and min(found.clusters.sizes) > 1
        ),
        "classes": float(found.classes),
        "clients": float(found.looked.of_clients),
        "label_excess": found.labels.excess,
        "gini": found.quantity.gini,
        "median": found.quantity.median,
        "feature_share": found.features.share,
        "feature_removed": math.nan if found.features.removed is None else found.features.removed,
        "concept_gain": found.concept.gain,
        "cluster_count": float(found.clusters.count),
        "cluster_least": float(min(found.clusters.sizes)),
        "silhouette": found.clusters.silhouette,
        "silhouette_chance": found.clusters.chance,
        "match_p": math.nan if match is None else match.p,
        "match_explained": math.nan if match is None else match.explained,
        "outliers": float(len(found.clusters.outliers)),
        "pooling": found.learning.pooling,
        "worse": -found.learning.pooling,
        "pooling_p": found.learning.pooling_p,
        "personalising": found.learning.personalising,
        "personalising_p": found.learning.personalising_p,
        "alone_better": found.learning.alone_better,
        "poor": float(there["quality"]),
        "poorness": max(poorness(found)),
    }


def advise(found: Findings, rules: Sequence[Rule] = RULES, *, unsuitable: Collection[str] = frozenset()) -> Advice:
    """Apply the rules to the findings.

    Args:
        found: the findings.
        rules: the rules.
        unsuitable: methods that refuse the task. They are not named, nor is a family that has no others.
    """
    measured = numbers(found)
    applied = [rule for rule in rules if rule.applies(measured)]
    suited = {key: [name for name in family.methods if name not in unsuitable] for key, family in FAMILIES.items()}
    keys = [key for key, family in FAMILIES.items() if suited[key] or not family.methods]
    every = [_family(key, suited[key], applied, measured) for key in keys]
    ranking = sorted((f for f in every if FAMILIES[f.family].competes), key=lambda f: -f.points)
    besides = [f for f in every if not FAMILIES[f.family].competes and f.points > 0]
    plain = max(f.points for f in ranking if f.family in PLAIN)
    nothing = ranking[0].family in PLAIN or ranking[0].points <= plain + MARGIN
    return Advice(
        summary=_summary(found, ranking, nothing),
        ranking=ranking,
        besides=besides,
        nothing_beats_fedavg=nothing,
        cannot_know=_limits(found),
    )


def _family(key: str, methods: list[str], applied: Sequence[Rule], measured: Mapping[str, float]) -> FamilyAdvice:
    about = [rule for rule in applied if rule.points.get(key)]
    points = sum(rule.points[key] for rule in about)
    evidence = sum(rule.points[key] > 0 and bool(rule.when) for rule in about)
    confidence = "low" if evidence < 1 or points < 1 else "high" if evidence > 1 and points >= 3 else "medium"
    if measured["clients"] < 10 and confidence == "high":
        confidence = "medium"
    return FamilyAdvice(
        family=key,
        title=FAMILIES[key].title,
        methods=methods,
        points=points,
        confidence=confidence,
        why=[Reason(rule=r.name, says=r.says.format(**measured), source=r.source) for r in about],
    )


def _summary(found: Findings, ranking: Sequence[FamilyAdvice], nothing: bool) -> str:
    words = {
        "labels": "how often each label occurs" if found.named else "the distribution of targets",
        "features": "inputs",
        "concept": "targets given inputs",
        "quantity": "size",
        "quality": "the quality of data",
    }
    there = fires(found)
    differ = [text for kind, text in words.items() if there[kind]]
    first = f"Clients differ in {_listed(differ)}." if differ else "Clients differ no more than chance explains."
    if there["clusters"]:
        first = f"{first[:-1]}, and they form {found.clusters.count} groups."
    best = ranking[0]
    named = " or ".join(best.methods[:2])
    plain = "FedAvg" if best.family == "global" else "FedAvg and fine-tuning"
    if nothing and best.family in PLAIN:
        return f"{first} Start with {plain}; nothing measured promises more."
    if nothing:
        return f"{first} Start with {plain}; {best.title} ({named}) promises little more."
    return f"{first} Try first: {best.title} ({named}), against fine-tuning."


def _listed(words: Sequence[str]) -> str:
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def _limits(found: Findings) -> list[str]:
    limits = [
        "Rows are taken as independent: neighbours in time or of one patient make p-values too small.",
        "Gains come from a small probe model, not from your network; a larger one may need personalisation less.",
        "Labels are trusted: wrong labels at one client look like targets that differ.",
    ]
    if found.quality.missing_from == "nothing":
        limits.append(
            "It is unknown which values were missing: build the federation with missing='impute' to keep indicators."
        )
    if found.quality.noise is None:
        limits.append("Noise in a table cannot be measured without repeated measurements.")
    if found.clusters.p is None:
        limits.append("Fewer than six clients are too few to distinguish groups from chance.")
    if found.learning.capped:
        limits.append("Clients have more rows than were used: alone they would do better than the curve says.")
    if found.looked.of_clients > len(found.looked.clients):
        limits.append(f"Only {len(found.looked.clients)} of {found.looked.of_clients} clients were examined closely.")
    return limits
