"""The forward pass of encoder-decoders: what runs in which call, and a decoder's look at what the encoder made.

The encoder runs in the first call with a KV cache only; from then on the cache holds the keys and values that each
decoder block made of its output.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Protocol, TypeVar

import torch
from torch import nn

from hanlin.layers.attention import AttentionMask, KeysOfRows
from hanlin.layers.kv_cache import KVCache
from hanlin.layers.prefix import Prefix, PrefixSource


@dataclass(frozen=True)
class EncoderDecoderInputs:
    """The tensors of a forward pass, int `[batch, length]` each; encoder and decoder have lengths of their own.

    tokens: what the decoder reads; encoder_tokens: what the encoder reads.
    spans, encoder_spans: the samples of a row, which never see each other: numbers from 0 on, the same on both sides,
    -1 = padding; None: a row is one sample without padding. With a KV cache: spans in all calls or in none.
    """

    tokens: torch.Tensor
    encoder_tokens: torch.Tensor
    spans: torch.Tensor | None = None
    encoder_spans: torch.Tensor | None = None

    @property
    def own_spans(self) -> torch.Tensor:
        return torch.zeros_like(self.tokens) if self.spans is None else self.spans

    @property
    def read_spans(self) -> torch.Tensor:
        return torch.zeros_like(self.encoder_tokens) if self.encoder_spans is None else self.encoder_spans


def cross_place(name: str) -> str:
    """What the prefix of a decoder block's look at the encoder is called."""
    return f"{name}.cross"


InputsT = TypeVar("InputsT", bound=EncoderDecoderInputs, contravariant=True)


@dataclass(frozen=True)
class DecoderContext:
    """What all decoder blocks share in a forward pass; encoded: None when its keys and values are in the KV cache; it
    has `num_rows`, or a single one that all of them look at.

    prefixes: those that come into this call, by the names of their attentions.
    """

    self_mask: AttentionMask
    cross_mask: AttentionMask
    encoded: torch.Tensor | None
    kv_cache: KVCache | None
    prefixes: Mapping[str, Prefix]
    num_rows: int

    def own_prefix(self, name: str) -> Prefix | None:
        """That of the self-attention of a block; None where there is none, or where the KV cache holds it already."""
        return self.prefixes.get(name)

    def for_block(self, name: str) -> DecoderContext:
        """See `parallel.compiled`."""
        places = ((name, ""), (cross_place(name), cross_place("")))
        return replace(self, prefixes={own: self.prefixes[place] for place, own in places if place in self.prefixes})

    def cross_attention_kv(
        self, name: str, project: Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]
    ) -> list[KeysOfRows]:
        """A block's keys and values of the encoder's output, projected once."""
        if self.encoded is None:
            assert self.kv_cache is not None, "neither the encoder's output nor what was made of it"
            return self.kv_cache.cross_attention(name)
        pair, prefix = project(self.encoded), self.prefixes.get(cross_place(name))
        if prefix is not None:
            pair = prefix.before(*pair)
        pair = tuple(one.expand(self.num_rows, -1, -1, -1) for one in pair)
        if self.kv_cache is not None:
            self.kv_cache.set_cross_attention(name, *pair, prefix=0 if prefix is None else prefix.keys.shape[1])
        return [KeysOfRows(slice(None), *pair)]


class EncoderDecoder(Protocol[InputsT]):
    """What a model gives to `run_encoder_decoder`.

    encodes_once: inputs of the encoder may be of one row, whose text all rows of the decoder look at.
    """

    encodes_once: ClassVar[bool]
    prefix: PrefixSource | None

    def embed_encoder(self, given: InputsT) -> torch.Tensor: ...

    def embed_decoder(self, given: InputsT, start: int) -> torch.Tensor:
        """start: the positions in the KV cache."""
        ...

    def encode(self, hidden: torch.Tensor, given: InputsT, prefixes: Mapping[str, Prefix]) -> torch.Tensor:
        """Run the encoder's blocks that exist."""
        ...

    def existing_decoder_blocks(self) -> Mapping[str, nn.Module]:
        """By name; called with hidden states, a `DecoderContext` and their name."""
        ...

    def decoder_masks(
        self, given: InputsT, known: torch.Tensor, hidden: torch.Tensor
    ) -> tuple[AttentionMask, AttentionMask]:
        """Masks of self-attention and of cross attention; known: the spans of all positions so far `[batch, all]`."""
        ...


def run_encoder_decoder(
    model: EncoderDecoder[InputsT], state: tuple[torch.Tensor, ...], given: InputsT, kv_cache: KVCache | None
) -> tuple[torch.Tensor | None, torch.Tensor]:
    """Hidden states of the encoder (None where it ran in an earlier call) and of the decoder, behind the blocks that
    exist.

    state: those of an earlier stage, none on the first one.
    """
    encoded, hidden = _split_state(state) if state else _embed_both(model, given, kv_cache)
    is_kept = kv_cache is not None and kv_cache.has_keys
    prefixes = {} if model.prefix is None or is_kept else model.prefix()
    if encoded is not None:
        encoded = model.encode(encoded, given, prefixes)
        if kv_cache is not None:
            kv_cache.set_cross_attention("encoder")  # a stage of encoder blocks has nothing else to keep
    return encoded, _decode(model, encoded, hidden, given, kv_cache, prefixes)


def prefix_places(encoder: Iterable[str], decoder: Iterable[str]) -> tuple[str, ...]:
    """The attentions of an encoder-decoder that a prefix stands before: the encoder's, then those of each decoder
    block; by the names of the blocks.
    """
    return (*encoder, *(place for name in decoder for place in (name, cross_place(name))))


def join_state(encoded: torch.Tensor | None, hidden: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """The state that travels to the next stage."""
    return (hidden,) if encoded is None else (encoded, hidden)


def _split_state(state: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor | None, torch.Tensor]:
    *encoder, hidden = state
    return (encoder[0] if encoder else None), hidden


def _embed_both(
    model: EncoderDecoder[InputsT], given: InputsT, kv_cache: KVCache | None
) -> tuple[torch.Tensor | None, torch.Tensor]:
    is_encoded = kv_cache is not None and kv_cache.has_cross_attention
    encoded = None if is_encoded else model.embed_encoder(given)
    return encoded, model.embed_decoder(given, 0 if kv_cache is None else kv_cache.length)


def _decode(
    model: EncoderDecoder[InputsT],
    encoded: torch.Tensor | None,
    hidden: torch.Tensor,
    given: InputsT,
    kv_cache: KVCache | None,
    prefixes: Mapping[str, Prefix],
) -> torch.Tensor:
    # The positions are counted on every stage, also where there is no block of the decoder.
    known = given.own_spans if kv_cache is None else kv_cache.add_positions(spans=given.own_spans)["spans"]
    blocks = model.existing_decoder_blocks()
    if not blocks:
        return hidden
    self_mask, cross_mask = model.decoder_masks(given, known, hidden)
    if model.prefix is not None:
        self_mask = self_mask.with_prefix(model.prefix.length, given.tokens)
        cross_mask = cross_mask.with_prefix(model.prefix.length, given.tokens)
    context = DecoderContext(self_mask, cross_mask, encoded, kv_cache, prefixes, hidden.shape[0])
    for name, block in blocks.items():
        hidden = block(hidden, context, name)
    return hidden
