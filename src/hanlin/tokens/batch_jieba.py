"""jieba's words for many texts at once: its own rules and numbers (0.42.1, exact mode with HMM), in numpy.

jieba follows three rules, one character after the other; here each is followed at the same place of thousands of blocks
at once, with the same floating-point sums in the same order and the same choice between equals, so the words are the
same. A block is a run of Chinese characters, letters and digits; any other character is a word of its own.

1. All words of the dictionary that begin at each character are found by walking a trie.
2. Backwards through a block, the best sum of logarithms of frequencies picks the next word at each character.
3. Where that leaves several single characters in a row, a hidden Markov model joins some of them. Its states B, E, M
   and S: beginning, end and middle of a word, single.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

BATCH_CHARACTERS = 1 << 17  # more at once spill out of the processor's caches
LONGEST_BLOCK = 400  # characters; longer ones go to jieba itself, since every step here is for one place of a block

_FIRST, _LAST = 0x4E00, 0x9FD5  # what jieba takes for Chinese
_BLOCK = "".join(map(chr, range(_FIRST, _LAST + 1))) + (
    "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789+#&._%-"
)
_SEPARATOR = "\n"  # between texts; it is no part of a block
_BLANK, _CR, _LF = 0x20, 0x0D, 0x0A
_STATES = "BEMS"
# For each state the two that may come before it; of equal ones the last is taken.
_BEFORE = {"B": "ES", "E": "BM", "M": "BM", "S": "ES"}


class BatchJieba:
    """Cuts texts with the dictionary that jieba has when this is made."""

    def __init__(self) -> None:
        import jieba

        jieba.setLogLevel(logging.WARNING)  # it reports that it loads its dictionary otherwise
        jieba.initialize()
        self._trie = _Trie(jieba.dt.FREQ, jieba.dt.total)
        self._model = _Model()
        self._is_block = np.zeros(0x110000, bool)
        self._is_block[[ord(character) for character in _BLOCK]] = True

    def join(self, texts: Sequence[str], visible: dict[int, int]) -> list[str]:
        """Each text's words with a blank between; visible: what characters are replaced by, a blank among them."""
        return [joined for batch in _batches(texts) for joined in self._join(batch, visible)]

    def _join(self, texts: Sequence[str], visible: dict[int, int]) -> list[str]:
        codes = _codes("".join([text + _SEPARATOR for text in texts]))
        sizes = np.fromiter(map(len, texts), np.int64, len(texts))
        ends = np.cumsum(sizes + 1) - 1
        starts = ends - sizes
        begins = self._begins(codes)
        begins[starts] = begins[ends] = False  # no blank stands at either end of a text
        for old, new in visible.items():
            is_old = codes == old
            is_old[ends] = False
            codes[is_old] = new
        num_blanks = np.cumsum(begins)
        joined = np.full(len(codes) + num_blanks[-1], _BLANK, np.uint32)
        joined[np.arange(len(codes)) + num_blanks] = codes
        text = joined.tobytes().decode("utf-32-le", "surrogatepass")
        starts, ends = starts + num_blanks[starts], ends + num_blanks[ends]
        return [text[start:end] for start, end in zip(starts.tolist(), ends.tolist(), strict=True)]

    def _begins(self, codes: np.ndarray) -> np.ndarray:
        """Whether a word begins at each character: bool `[characters]`."""
        begins = np.ones(len(codes), bool)
        begins[1:] &= ~((codes[1:] == _LF) & (codes[:-1] == _CR))
        edges = np.flatnonzero(np.diff(self._is_block[codes], prepend=False, append=False))
        starts, ends = edges[::2], edges[1::2]
        is_long = ends - starts > LONGEST_BLOCK
        for start, end in zip(starts[is_long].tolist(), ends[is_long].tolist(), strict=True):
            _mark(begins, start, _cut_block(codes[start:end]))
        starts, ends = starts[~is_long], ends[~is_long]
        if len(starts):
            self._cut_blocks(codes, starts, ends, begins)
        return begins

    def _cut_blocks(self, codes: np.ndarray, starts: np.ndarray, ends: np.ndarray, begins: np.ndarray) -> None:
        rest = np.zeros(len(codes), np.uint16)  # characters to the end of the block
        sizes = ends - starts
        places = np.repeat(ends, sizes) - _countdown(sizes)
        rest[places] = _countdown(sizes)
        words = self._trie.words(codes, places, rest)
        lengths = _best_lengths(words, places, rest)
        is_single = _follow(lengths, starts, ends, begins)
        self._join_singles(codes, words, is_single, begins)

    def _join_singles(self, codes: np.ndarray, words: _Words, is_single: np.ndarray, begins: np.ndarray) -> None:
        edges = np.flatnonzero(np.diff(is_single, prepend=False, append=False))
        starts, sizes = edges[::2], np.diff(edges)[::2]
        wanted = (sizes > 1) & ~words.holds(starts, sizes)  # a word that was not chosen stays single characters
        starts, sizes = starts[wanted], sizes[wanted]
        places = np.repeat(starts + sizes, sizes) - _countdown(sizes)
        is_chinese = np.logical_and.reduceat(_is_chinese(codes[places]), _offsets(sizes)) if len(starts) else wanted[:0]
        for start, size in zip(starts[~is_chinese].tolist(), sizes[~is_chinese].tolist(), strict=True):
            _mark(begins, start, _cut_mixed(codes[start : start + size]))
        self._model.cut(codes, starts[is_chinese], sizes[is_chinese], begins)


# --- 1: the dictionary ---


@dataclass(frozen=True)
class _Words:
    """Words of the dictionary by the place they begin at, shortest first: rows of `lengths` and `scores`."""

    lengths: np.ndarray
    scores: np.ndarray
    starts: np.ndarray
    counts: np.ndarray

    def holds(self, places: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        """Whether a word of this length, more than 1, begins there."""
        found = np.zeros(len(places), bool)
        for number in range(int(self.counts[places].max(initial=0))):
            rows = self.starts[places] + np.minimum(number, self.counts[places] - 1)
            found |= self.lengths[rows] == lengths
        return found


class _Trie:
    """Nodes are the beginnings of words; a child is found in a table of 64-bit keys by (node, character)."""

    def __init__(self, frequencies: dict[str, int], total: int) -> None:
        inside = set(_BLOCK)
        known = [word for word in frequencies if inside.issuperset(word)]
        nodes = {word: number for number, word in enumerate(known)}
        log_total = math.log(total)
        self.unknown = math.log(1) - log_total  # of a character that begins no word
        self.scores = np.array([math.log(f) - log_total if (f := frequencies[word]) else np.nan for word in known])
        self.first = np.full(0x10000, -1, np.int32)
        for word in known:
            if len(word) == 1:
                self.first[ord(word)] = nodes[word]
        longer = [word for word in known if len(word) > 1]
        keys = np.array([nodes[word[:-1]] << 16 | ord(word[-1]) for word in longer], np.int64)
        self.keys, self.children = _hash_table(keys, np.array([nodes[word] for word in longer], np.int32))

    def words(self, codes: np.ndarray, places: np.ndarray, rest: np.ndarray) -> _Words:
        """All words that begin at the places and do not leave their block; a single character where there is none."""
        counts = np.zeros(len(codes) + 1, np.int32)
        found = []
        at, length = places, 1
        node = self.first[codes[places]]
        while len(at):
            is_known = node >= 0
            at, node = at[is_known], node[is_known]
            scores = self.scores[node]
            is_word = ~np.isnan(scores)
            begin = at[is_word]
            found.append((begin, counts[begin], length, scores[is_word]))
            counts[begin] += 1
            goes_on = rest[at] > length
            at, node = at[goes_on], node[goes_on]
            node = self._child(node, codes[at + length])
            length += 1
        alone = places[counts[places] == 0]
        found.append((alone, counts[alone], 1, np.full(len(alone), self.unknown)))
        counts[alone] = 1
        starts = np.cumsum(counts) - counts
        lengths, scores = np.empty(counts.sum(), np.int32), np.empty(counts.sum())
        for begin, rank, length, score in found:
            rows = starts[begin] + rank
            lengths[rows], scores[rows] = length, score
        return _Words(lengths, scores, starts, counts)

    def _child(self, node: np.ndarray, codes: np.ndarray) -> np.ndarray:
        """The node for one character more, -1 where no word goes on like this."""
        keys = node.astype(np.int64) << 16 | codes
        slots = _hash(keys, len(self.keys))
        children = np.where(self.keys[slots] == keys, self.children[slots], -1)
        open_ = np.flatnonzero((self.keys[slots] != keys) & (self.keys[slots] >= 0))
        while len(open_):
            slots[open_] = (slots[open_] + 1) % len(self.keys)
            found = self.keys[slots[open_]]
            is_here = found == keys[open_]
            children[open_[is_here]] = self.children[slots[open_[is_here]]]
            open_ = open_[~is_here & (found >= 0)]
        return children


def _hash_table(keys: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Keys, -1 where there is none, and values; a key lies at its hash, or in the next free place after it."""
    size = 1 << (4 * len(keys)).bit_length()
    table, stored = np.full(size, -1, np.int64), np.zeros(size, values.dtype)
    slots, open_ = _hash(keys, size), np.arange(len(keys))
    while len(open_):
        free = open_[table[slots[open_]] < 0]
        _, first = np.unique(slots[free], return_index=True)
        taken = free[first]
        table[slots[taken]], stored[slots[taken]] = keys[taken], values[taken]
        open_ = open_[table[slots[open_]] != keys[open_]]
        slots[open_] = (slots[open_] + (table[slots[open_]] >= 0)) % size
    return table, stored


def _hash(keys: np.ndarray, size: int) -> np.ndarray:
    """Places in a table of `size`, a power of two: the upper bits of a product (Fibonacci hashing)."""
    mixed = keys.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    return (mixed >> np.uint64(64 - (size.bit_length() - 1))).astype(np.int64)


# --- 2: the best way through each block ---


def _best_lengths(words: _Words, places: np.ndarray, rest: np.ndarray) -> np.ndarray:
    """For each place the length of the word that is best there, seen from the end of its block."""
    order = places[np.argsort(rest[places], kind="stable")]
    counts = words.counts[order]
    rows = np.repeat(words.starts[order] - _offsets(counts), counts) + np.arange(counts.sum())
    lengths, scores = words.lengths[rows], words.scores[rows]
    targets = np.repeat(order, counts) + lengths
    firsts = np.concatenate((_offsets(counts), [len(rows)]))
    bounds = np.searchsorted(rest[order], np.arange(1, int(rest[order[-1]]) + 2))
    total, best = np.zeros(len(words.counts)), np.zeros(len(words.counts), np.int32)
    for first, end in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True):
        part = slice(firsts[first], firsts[end])
        groups = firsts[first:end] - firsts[first]
        sums = scores[part] + total[targets[part]]
        most = np.maximum.reduceat(sums, groups)
        is_best = sums == np.repeat(most, counts[first:end])
        total[order[first:end]] = most
        best[order[first:end]] = np.maximum.reduceat(lengths[part] * is_best, groups)  # the longest of equals
    return best


def _follow(lengths: np.ndarray, starts: np.ndarray, ends: np.ndarray, begins: np.ndarray) -> np.ndarray:
    """Go from word to word; sets `begins` inside the blocks, returns where a word is one character."""
    is_single = np.zeros(len(begins), bool)
    sizes = ends - starts
    begins[np.repeat(ends, sizes) - _countdown(sizes)] = False
    at = starts
    while len(at):
        begins[at] = True
        step = lengths[at]
        is_single[at] = step == 1
        at, inside = at + step, at + step < ends
        at, ends = at[inside], ends[inside]
    return is_single


# --- 3: single characters in a row ---


class _Model:
    """The hidden Markov model of jieba.finalseg as tables: state by state, and state by character."""

    def __init__(self) -> None:
        from jieba import finalseg

        self.least = finalseg.MIN_FLOAT
        self.start = np.array([finalseg.start_P[state] for state in _STATES])[:, None]
        self.emit = np.full((len(_STATES), _LAST + 1 - _FIRST), self.least)
        for row, state in zip(self.emit, _STATES, strict=True):
            for character, score in finalseg.emit_P[state].items():
                if _FIRST <= ord(character) <= _LAST:
                    row[ord(character) - _FIRST] = score
        self.before = np.array([[_STATES.index(old) for old in _BEFORE[state]] for state in _STATES])
        self.move = np.array(
            [[finalseg.trans_P[old].get(state, self.least) for old in _BEFORE[state]] for state in _STATES]
        )

    def cut(self, codes: np.ndarray, starts: np.ndarray, sizes: np.ndarray, begins: np.ndarray) -> None:
        """Set `begins` in the runs of characters, each of at least two."""
        if not len(starts):
            return
        order = np.argsort(-sizes, kind="stable")  # the longest first: those that go on are always the first ones
        starts, sizes = starts[order], sizes[order]
        counts = [int(np.searchsorted(-sizes, -step, side="left")) for step in range(int(sizes[0]))]
        scores = self.start + self._emitted(codes[starts])
        froms = []
        for step in range(1, int(sizes[0])):
            count = counts[step]
            emitted = self._emitted(codes[starts[:count] + step])[:, None]
            sums = scores[self.before, :count] + self.move[:, :, None] + emitted  # [state, before, runs]
            is_last = sums[:, 1] >= sums[:, 0]
            froms.append(np.where(is_last, self.before[:, 1:], self.before[:, :1]).astype(np.uint8))
            scores[:, :count] = np.where(is_last, sums[:, 1], sums[:, 0])
        single, end = _STATES.index("S"), _STATES.index("E")
        state = np.where(scores[single] >= scores[end], single, end)
        begins_word = np.array([state in "BS" for state in _STATES])
        for step in range(int(sizes[0]) - 1, 0, -1):
            count = counts[step]
            begins[starts[:count] + step] = begins_word[state[:count]]
            state[:count] = np.take_along_axis(froms[step - 1], state[None, :count], axis=0)[0]
        begins[starts] = True

    def _emitted(self, codes: np.ndarray) -> np.ndarray:
        return self.emit[:, codes - _FIRST]


@cache
def batch_segmenter() -> BatchJieba:
    """The segmenter of this process; made when it is first asked for, which takes a second or two."""
    return BatchJieba()


# --- small parts ---


def _batches(texts: Sequence[str]) -> Iterator[list[str]]:
    batch, size = [], 0
    for text in texts:
        batch.append(text)
        size += len(text)
        if size >= BATCH_CHARACTERS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _codes(text: str) -> np.ndarray:
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32).astype(np.int64)


def _text(codes: np.ndarray) -> str:
    return "".join(map(chr, codes.tolist()))


def _cut_block(codes: np.ndarray) -> list[str]:
    import jieba

    return jieba.lcut(_text(codes))


def _cut_mixed(codes: np.ndarray) -> list[str]:
    """Single characters that are not all Chinese, by jieba's own rules for them."""
    from jieba import finalseg

    return list(finalseg.cut(_text(codes)))


def _mark(begins: np.ndarray, start: int, words: Sequence[str]) -> None:
    sizes = np.fromiter(map(len, words), np.int64, len(words))
    begins[start : start + int(sizes.sum())] = False
    begins[start + _offsets(sizes)] = True


def _is_chinese(codes: np.ndarray) -> np.ndarray:
    return (codes >= _FIRST) & (codes <= _LAST)


def _offsets(sizes: np.ndarray) -> np.ndarray:
    return np.cumsum(sizes) - sizes


def _countdown(sizes: np.ndarray) -> np.ndarray:
    """`[3, 2, 1, 2, 1]` for the sizes 3 and 2."""
    return np.repeat(np.cumsum(sizes), sizes) - np.arange(sizes.sum())
