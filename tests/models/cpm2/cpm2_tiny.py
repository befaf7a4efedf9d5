"""A tiny CPM-2 in the original's layout, and a few raw rows of each data set as its files hold them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch

from hanlin.formats.convert import convert
from hanlin.formats.load import save_base
from hanlin.models.cpm2 import family
from hanlin.models.cpm2.config import Cpm2Config
from hanlin.models.cpm2.tokenizer import Cpm2Tokenizer

ROWS: dict[str, list[Any]] = {
    "c3": [
        [
            ["小明去图书馆借了三本书。", "不会用到"],
            [
                {"question": "借了几本？", "choice": ["一本", "两本", "三本"], "answer": "三本"},
                {"question": "去了哪里？", "choice": ["学校", "图书馆"], "answer": "图书馆"},
            ],
            "7",
        ],
        [["今天天气好，去公园。"], [{"question": "去哪里？", "choice": ["公园", "超市"], "answer": "公园"}], "8"],
    ],
    "ccpm": [
        {"translation": "灯熄灭了", "choices": ["灯明", "灯灭", "山高", "水长"], "answer": 1},
        {"translation": "山很高", "choices": ["灯明", "灯灭", "山高", "水长"], "answer": 2},
    ],
    "kdconv": [
        {"history": "你知道长城吗？", "kg": "长城 位置 北京", "response": "长城在北京。"},
        {"history": ["你好", "故宫呢"], "kg": [["故宫", "位置", "北京"]], "response": "故宫在北京。"},
    ],
    "lcqmc": [
        {"sentence1": "今天天气好吗", "sentence2": "今天的天气好吗", "label": 1},
        {"sentence1": "你去哪里", "sentence2": "天气好吗", "label": 0},
    ],
    "sogou-log": [
        {"query": "北京　天气", "pos_doc": "北京天气", "neg_doc": "公园超市"},
        {"query": "锟斤拷", "pos_doc": "a", "neg_doc": "b"},
        {"query": "书", "pos_doc": "同", "neg_doc": "同"},
        {"query": "图书馆", "pos_doc": "图书馆借书", "neg_doc": "山高水长"},
    ],
    "math": [
        {"text": "小红有5个苹果，又有3个，一共有几个？", "equation": "x=5+3"},
        {"text": "打八折后多少元？", "equation": "x=120*80%"},
    ],
    "lcsts": [
        {"text": "本周末将有大雨，气温下降。", "summary": "周末有雨"},
        {"text": "公司宣布完成融资。", "summary": "公司融资"},
    ],
    "adgen": [
        {"title": "连衣裙", "tags": ["清凉", "舒适"], "feature": [["版型", "宽松"]], "desc": "宽松舒适。"},
        {"title": "", "feature": [], "desc": "不会用到"},
        {"title": "", "feature": [["颜色", "白色"]], "desc": "白色清凉。"},
    ],
    "wmtencn": [
        {"index": 1, "source": "天气很好。", "target": "the weather is nice"},
        {"index": 2, "source": "我喜欢苹果。", "target": "i like apples"},
    ],
}
RANKING = [
    {
        "query_id": 3,
        "query": "北京　天气",
        "doc": [{"sogou_id": "x-17", "title": "北京"}, {"sogou_id": "x-2", "title": "书"}],
    },
    {"query_id": 4, "query": "书", "doc": [{"sogou_id": "s-9", "title": "借书"}]},
]
_LISTS = ("c3", "math", "wmtencn")
_WORDS = ["意思", "相关", "矛盾", "相似", "问题", "选项", "文章", "历史", "图谱", "查询", "标题"]
_SPECIALS = ["<unk>", "<s>", "</s>", "\u2583", "<sep>", "<pad>", "<mask>", "<eod>", "\u2581", ".", "\u2582"]


def make_tokenizer(*, is_bilingual: bool = False) -> Cpm2Tokenizer:
    """A vocabulary of the single characters of all rows."""
    texts = json.dumps([ROWS, RANKING], ensure_ascii=False) + "的。，：；、“”与一二三四五六七八"
    own = sorted({character for character in texts if character not in " .\n"})
    inside = [f"##{character}" for character in own if character.isascii()] if is_bilingual else []
    specials = [*_SPECIALS[:7], "<go>", *_SPECIALS[7:]] if is_bilingual else _SPECIALS
    return Cpm2Tokenizer([*specials, *own, *inside, *_WORDS, *(f"<s_{number}>" for number in range(4))])


def write_original(folder: Path, *, ranks: int = 1, **config: Any) -> Path:
    """Write `folder/cpm2` as the original's release lies there, with its configuration and vocabulary; return it."""
    tokenizer = make_tokenizer()
    shape: dict[str, Any] = {
        "hidden_size": 16,
        "num_layers": 1,
        "num_heads": 2,
        "head_dim": 8,
        "ffn_size": 24,
        **config,
    }
    vocab_size = -(-tokenizer.vocab_size // ranks) * ranks
    made = Cpm2Config(vocab_size=vocab_size, init_std=0.1, **shape)
    model = family.model()(made)
    model.init_weights(torch.Generator().manual_seed(1))
    base, target = folder / "base", folder / "cpm2"
    save_base(base, family, made, dict(model.named_parameters()), tokenizer)
    convert(base, family, None, "original", target, tokenizer=tokenizer)
    shutil.rmtree(base)
    return target


def write_rows(path: Path, rows: list[Any], *, as_list: bool = False) -> Path:
    """JSON lines, or one list."""
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    path.write_text(f"[{', '.join(lines)}]" if as_list else "".join(f"{line}\n" for line in lines), "utf-8")
    return path


def write_raw(folder: Path, dataset: str) -> Path:
    """The rows of a data set in the form of its files."""
    return write_rows(folder / f"{dataset}.json", ROWS[dataset], as_list=dataset in _LISTS)
