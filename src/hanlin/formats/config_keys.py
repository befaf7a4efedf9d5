"""What is known of the keys of a foreign configuration, so that none that changes the arithmetic is read over.

A key is read, or harmless, or has neutral values, with which it changes nothing. What is none of these is a switch
that was unknown when this was written: it may stand there switched off (null, false, 0, empty), else it is refused.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from hanlin.core.errors import CheckpointError, shorten

_SHOWN = 6

_OF_ALL_MODELS = """
_attn_implementation _attn_implementation_autoset _attn_implementation_internal _commit_hash _name_or_path
architectures attn_implementation auto_map bad_words_ids begin_suppress_tokens bos_token_id chunk_size_feed_forward
cls_token_id decoder_start_token_id diversity_penalty do_sample dtype early_stopping encoder_no_repeat_ngram_size
eos_token_id exponential_decay_length_penalty finetuning_task forced_bos_token_id forced_eos_token_id
gradient_checkpointing id2label initializer_range is_decoder label2id length_penalty max_length min_length
no_repeat_ngram_size num_beam_groups num_beams num_labels num_return_sequences output_attentions output_hidden_states
output_past output_scores pad_token_id padding_side prefix pretraining_tp problem_type remove_invalid_values
repetition_penalty return_dict return_dict_in_generate sep_token_id suppress_tokens task_specific_params temperature
tf_legacy_loss tokenizer_class top_k top_p torch_dtype torchscript transformers_version truncation typical_p
unk_token_id use_bfloat16 use_cache
"""
TRANSFORMERS_KEYS = frozenset(_OF_ALL_MODELS.split())
"""What transformers writes into any model's config.json; how to generate is a recipe's matter here."""


@dataclass(frozen=True)
class ConfigKeys:
    """read: keys whose values are used or compared; harmless: those that change neither answers nor training;
    neutral: key -> the values with which it changes nothing, also as a list of nothing else; null says nothing where
    one of them is off.
    """

    read: Collection[str] = ()
    harmless: Collection[str] = ()
    neutral: Mapping[str, Collection[Any]] = field(default_factory=dict)

    def check(self, values: Mapping[str, Any], where: str) -> None:
        """See that no value changes the model in a way that is not computed here; where: the file, for the message.

        Raises: CheckpointError naming every such key.
        """
        found = [text for name, value in values.items() if (text := self._problem(name, value))]
        if found:
            raise CheckpointError(
                f"{where}: says what is not computed here: {'; '.join(shorten(found, _SHOWN))}. Take weights without "
                "it; if you know that it changes nothing in this model, take it out of the file"
            )

    def _problem(self, name: str, value: Any) -> str:
        if name in self.neutral:
            known = list(self.neutral[name])
            says_nothing = value is None and not all(known)
            given = value if isinstance(value, list) and value else [value]
            if says_nothing or all(one in known for one in given):
                return ""
            return f"{name} is {value!r:.40}, known: {', '.join(map(repr, known))}"
        if name in self.read or name in self.harmless or value in (None, 0, "", [], {}, ()):  # 0: also false and 0.0
            return ""
        return f"{name} is {value!r:.40}, which is unknown here"
