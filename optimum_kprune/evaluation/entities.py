"""Entities in the tags of words: B-PER, I-PER, O ... -> spans -> precision, recall and F1, as CoNLL counts them."""

from collections.abc import Iterable, Sequence

# The first letters of tags at the first word of an entity, and at the others; E and L stand at the last one.
BEGINNINGS, OTHERS = {"B", "S", "U"}, {"I", "E", "L"}
Entity = tuple[str, int, int]


def are_entities(classes: Iterable[str]) -> bool:
    """Returns whether the classes of a model mark entities, in one of the schemes IOB, IOBES and BILOU."""
    prefixes = {name.partition("-")[0] for name in classes} - {"O"}
    return bool(prefixes) and prefixes <= BEGINNINGS | OTHERS


def entities_in(tags: Sequence[str]) -> set[Entity]:
    """Returns the kind, the first word and the word after the last of every entity.

    An entity also begins where the kind changes, as in IOB1 and in what models predict.
    """
    entities, start, kind = set(), 0, None
    for place, tag in enumerate([*tags, "O"]):
        prefix, _, name = tag.partition("-")
        next_kind = None if tag == "O" else name
        if next_kind != kind or prefix in BEGINNINGS:
            if kind is not None:
                entities.add((kind, start, place))
            start, kind = place, next_kind
    return entities


def entity_scores(predicted: Iterable[Sequence[str]], gold: Iterable[Sequence[str]]) -> dict[str, float]:
    """Returns precision, recall and F1 of entities, all of which count alike. One is right if kind and words are.

    Args:
        predicted: predicted tags of the words of every text.
        gold: the right tags of the same words.
    """
    found, wanted = _placed(predicted), _placed(gold)
    right = len(found & wanted)
    return {
        "precision": right / len(found) if found else 0.0,
        "recall": right / len(wanted) if wanted else 0.0,
        "f1": 2 * right / (len(found) + len(wanted)) if found or wanted else 0.0,
    }


def _placed(texts: Iterable[Sequence[str]]) -> set[tuple[int, Entity]]:
    """Returns the entities of all texts, each with the index of its text."""
    return {(text, entity) for text, tags in enumerate(texts) for entity in entities_in(tags)}
