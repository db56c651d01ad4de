"""What prepares which kind of input."""

from media import feature_extractor, image_processor
from tiny_texts import make_tokenizer
from transformers import ProcessorMixin

from optimum_kprune.calibration.modality import AUDIO, IMAGE, MODALITIES, TEXT


class Whole(ProcessorMixin):
    """A processor that holds several."""

    def __init__(self, **parts):
        vars(self).update(parts)


def test_each_kind_is_prepared_by_its_own_or_by_a_processor_that_holds_it():
    parts = {TEXT: make_tokenizer(), IMAGE: image_processor(), AUDIO: feature_extractor()}
    assert set(MODALITIES.values()) == set(parts)
    for modality, own in parts.items():
        for other in parts.values():
            assert modality.part_of(other) is (own if other is own else None)
        whole = Whole(**{each.attribute: part for each, part in parts.items()})
        assert modality.part_of(whole) is own
        assert modality.part_of(Whole()) is modality.part_of(None) is None
