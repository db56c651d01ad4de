"""The kinds of input that encoders read: texts, images and audio, by the name of a model's main input."""

from dataclasses import dataclass
from typing import Any

from transformers import BaseImageProcessor, FeatureExtractionMixin, PreTrainedTokenizerBase, ProcessorMixin

# What prepares raw data for a model: one of the first three, or a processor that holds one of them.
ProcessingClass = PreTrainedTokenizerBase | BaseImageProcessor | FeatureExtractionMixin | ProcessorMixin


@dataclass(frozen=True)
class Modality:
    """A kind of input, and the words for it in messages.

    Attributes:
        data: what raw data is called.
        prepared_by: what prepares it for a model.
        attribute: where a processor of several modalities holds that.
        kind: its class.
        auto_class: name of the Auto class that loads it.
        files: the files that it is saved in.
        sample: what one sample is called.
        position: what one position of the hidden states is called.
    """

    data: str
    prepared_by: str
    attribute: str
    kind: type
    auto_class: str
    files: tuple[str, ...] = ("preprocessor_config.json", "processor_config.json")
    sample: str = "sample"
    position: str = "position"

    def part_of(self, processing_class: Any) -> Any:
        """Returns what prepares this modality: a processing class itself, or what it holds; None if it is neither."""
        if isinstance(processing_class, self.kind):
            return processing_class
        part = getattr(processing_class, self.attribute, None)
        return part if isinstance(part, self.kind) else None


TEXT = Modality(
    data="text",
    prepared_by="a tokenizer",
    attribute="tokenizer",
    kind=PreTrainedTokenizerBase,
    auto_class="AutoTokenizer",
    files=("tokenizer.json", "tokenizer_config.json"),
    position="token",
)
IMAGE = Modality(
    data="images",
    prepared_by="an image processor",
    attribute="image_processor",
    kind=BaseImageProcessor,
    auto_class="AutoImageProcessor",
    sample="image",
)
AUDIO = Modality(
    data="audio",
    prepared_by="a feature extractor",
    attribute="feature_extractor",
    kind=FeatureExtractionMixin,
    auto_class="AutoFeatureExtractor",
    sample="recording",
)

# By `main_input_name` of the models of transformers.
MODALITIES = {"input_ids": TEXT, "pixel_values": IMAGE, "input_values": AUDIO, "input_features": AUDIO}
