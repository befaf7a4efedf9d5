"""The binary data set of the original CPM-Bee: a folder with `meta.bin` and data files made of whole blocks.

`meta.bin` is text, one JSON object a line per data file; the blocks of all files are numbered through. A record in a
block is 0x1F, its size (uint32, little endian) and the payload; 0x00 ends the block. The payload is JSON, a pickle or
raw bytes and is not marked: it is recognised by its content. Pickles are read by an unpickler that knows plain values
only, so a data set cannot run code.

`BeeSource` gives random access; `BeeReader` reads in the order of the original (blocks dealt to ranks, taken from the
end of the list) with its resume state.
"""

from .meta import META, BeeFile, read_meta, write_meta
from .payload import read_payload, write_payload
from .reading import BeeReader, BeeSource
from .whole_sets import compact_bee, mask_bee, merge_bee, shuffle_bee
from .writing import write_bee

__all__ = [
    "META",
    "BeeFile",
    "BeeReader",
    "BeeSource",
    "compact_bee",
    "mask_bee",
    "merge_bee",
    "read_meta",
    "read_payload",
    "shuffle_bee",
    "write_bee",
    "write_meta",
    "write_payload",
]
