"""Which data set the records are of, and how long they may be: the options of CPM-2's samples."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from hanlin.core.errors import ConfigError
from hanlin.models.common.span_corruption import check_spans

from .datasets import DATA_SETS, RawDataset
from .datasets.text_to_text import text_to_text


@dataclass(frozen=True)
class Cpm2Options:
    """What may be chosen about the samples."""

    # One of CPM-2's data sets by the name that its scripts use, with the template and the label words of the original;
    # text: records with any two columns.
    dataset: Literal["text", "c3", "ccpm", "kdconv", "lcqmc", "sogou-log", "math", "lcsts", "adgen", "wmtencn"] = "text"
    # With dataset text: key of what the encoder reads.
    source_column: str = "source"
    # With dataset text: key of the answer.
    target_column: str = "target"
    # Ids that the encoder reads; what is beyond is cut off. None: as the data set has it (c3 768, kdconv 512).
    source_length: int | None = None
    # Tokens of an answer. A longer one is cut, and its end is then not learned.
    answer_length: int | None = None
    # sample: the loss is the mean over the samples of the means over their tokens, as in the original; token: the mean
    # over all tokens, so that long answers weigh more.
    loss: Literal["sample", "token"] = "sample"
    # True: answers and gold texts as the original compares them: through the tokenizer, the first and the last
    # id of what was generated dropped, whatever they are.
    compatible: bool = False
    # cn_en only. True: a text of one token is encoded as that token twice, as the original does it.
    doubles_lone: bool = True
    # Pretraining (data.split): the share of tokens that is taken out.
    density: float = 0.15
    # Pretraining (data.split): tokens of a span that is taken out (the report of CPM-2 says 10, its program 3).
    mean_span: float = 3.0

    def __post_init__(self) -> None:
        for name in ("source_length", "answer_length"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name} is {value}, expected at least 1 token")
        check_spans(self.density, self.mean_span)
        if self.dataset != "text" and (self.source_column, self.target_column) != ("source", "target"):
            raise ConfigError(f"source_column, target_column: no effect with dataset {self.dataset}; remove them")

    @property
    def data_set(self) -> RawDataset:
        if self.dataset == "text":
            return text_to_text(self.source_column, self.target_column)
        return DATA_SETS[self.dataset]
